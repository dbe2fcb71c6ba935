"""Fits outlier statistics: one pass over training images, and one over validation images.

Only a mean, a covariance and two numbers for each validation image are held in memory.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import BadImageError, InputError
from eagleray.data.encoding import encode_attributes
from eagleray.data.labelled import LabelledImages
from eagleray.imaging import DecodedImage, decode
from eagleray.inference.engine import make_network
from eagleray.inference.plan import ExecutionPlan
from eagleray.io.fetch import fetch_image
from eagleray.io.read_ahead import read_ahead
from eagleray.models.attributes import Features
from eagleray.models.building import replace_layer
from eagleray.models.networks.outlier_head import find_linear_head, residuals
from eagleray.models.outliers import MAX_LEVELS, OutlierStatistics
from eagleray.models.package import ModelPackage
from eagleray.outliers.moments import Moments
from eagleray.outliers.spec import MIN_IMAGES
from eagleray.tasks.base import only_tensor

__all__ = ["FittedStatistics", "fit_statistics"]

Floats = npt.NDArray[np.float32]

_VARIANCE_SHARE = 0.9  # within the subspace; docs/outliers.md has the figures
_MAX_DIRECTIONS = 1024
_THREADS = 4
_TINY = 1e-6


@dataclass(frozen=True)
class FittedStatistics:
    """Outlier statistics, and how many images they were made of.

    Attributes:
        statistics: The statistics.
        num_train: Number of training images.
        num_validation: Number of validation images.
        num_failed: Number of images that could not be read or decoded, and were passed over.
    """

    statistics: OutlierStatistics
    num_train: int
    num_validation: int
    num_failed: int


def fit_statistics(
    package: ModelPackage,
    train: LabelledImages,
    validation: LabelledImages,
    reporter: ProgressReporter,
) -> FittedStatistics:
    """Fit the statistics of a classifier.

    Args:
        package: The model package.
        train: Images that the model has learned, or others like them.
        validation: Other images, whose distances become the levels of the score.
        reporter: Shows the progress.

    Raises:
        InputError: If the last layer is not a linear one, or too few images can be decoded.
        PackageError: If the weights do not fit the network, or it is a graph.
    """
    network = _FeatureNetwork(package, reporter)
    moments = Moments(network.num_features)
    for features, _ in network.run(train, "Features of training images"):
        moments.add(features.numpy())
    _require_enough(moments.count, "training")
    mean, directions = _principal(moments)
    rows = []
    for features, logits in network.run(validation, "Levels of validation images"):
        distances = residuals(features, torch.from_numpy(mean), torch.from_numpy(directions))
        rows.append(torch.stack([distances, package.task.confidence(logits)], dim=1))
    found = torch.cat([torch.empty(0, 2), *rows]).numpy()
    _require_enough(len(found), "validation")
    residual, confidence = found.T
    # Both terms vary alike among validation images.
    weight = np.array([max(confidence.std(), _TINY) / max(residual.std(), _TINY)], np.float32)
    levels = _levels(weight * residual - confidence)
    statistics = OutlierStatistics(mean, directions, weight, levels)
    return FittedStatistics(statistics, moments.count, len(found), network.num_failed)


def _principal(moments: Moments) -> tuple[Floats, Floats]:
    """Return the mean (F,) and the directions that hold most of the variance (F, D)."""
    variances, vectors = np.linalg.eigh(moments.covariance)  # in ascending order
    shares = np.cumsum(variances[::-1]) / max(variances.sum(), _TINY)
    count = int(np.searchsorted(shares, _VARIANCE_SHARE)) + 1
    count = min(count, _MAX_DIRECTIONS, len(variances) - 1)  # a residual needs one more
    directions = np.ascontiguousarray(vectors[:, ::-1][:, :count])
    return moments.mean.astype(np.float32), directions.astype(np.float32)


def _levels(distances: Floats) -> Floats:
    """Return the distances at equal steps of their share, all of them if they are few."""
    ordered = np.sort(distances)
    if len(ordered) <= MAX_LEVELS:
        return ordered
    shares = (np.arange(MAX_LEVELS) + 0.5) / MAX_LEVELS
    return np.quantile(ordered, shares).astype(np.float32)


def _require_enough(count: int, which: str) -> None:
    """Refuse statistics of a few images.

    Raises:
        InputError: If there are fewer than `MIN_IMAGES`.
    """
    if count < MIN_IMAGES:
        raise InputError(
            f"{count:,} {which} images can be decoded, and outlier statistics need at least "
            f"{MIN_IMAGES}; name more images like those of the training by --data."
        )


class _FeaturesBeforeLogits(nn.Module):
    """A head that returns its features (N, F), and behind them the logits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, *attributes: Tensor) -> Tensor:
        return torch.cat([features, self.head(features, *attributes)], dim=1)


class _FeatureNetwork:
    """Computes features and logits of images, in float32.

    Attributes:
        num_features: Length of the features.
        num_failed: Number of images so far that could not be read or decoded.
    """

    def __init__(self, package: ModelPackage, reporter: ProgressReporter) -> None:
        self.num_failed = 0
        self._package, self._reporter = package, reporter
        module = package.build_module()
        path, head, self.num_features = find_linear_head(module, package.manifest.architecture)
        replace_layer(module, path, _FeaturesBeforeLogits(head))
        self._plan = ExecutionPlan.choose(precision="float32")
        self._network = make_network(module, package, self._plan)

    def run(self, images: LabelledImages, description: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (N, F) and logits (N, num_outputs) of each batch of images."""
        contract, size = self._package.contract, self._plan.batch_size

        def read(uri: str) -> DecodedImage | None:
            try:
                return decode(fetch_image(uri, contract), contract)
            except BadImageError:
                return None

        attributes = encode_attributes(self._package.attributes, images)
        results = read_ahead(read, images.uris, threads=_THREADS, max_ahead=2 * _THREADS)
        with self._reporter.progress(description, len(images)) as bar, contextlib.closing(results):
            numbered = enumerate(results)
            while batch := list(itertools.islice(numbered, size)):
                good = [(row, image.pixels) for row, image in batch if image is not None]
                failed = len(batch) - len(good)
                self.num_failed += failed
                if good:
                    rows, pixels = zip(*good, strict=True)
                    known = None if attributes is None else attributes[list(rows)]
                    yield self._forward(np.stack(pixels), known)
                bar.advance(len(batch), failed=failed)

    def _forward(
        self, pixels: npt.NDArray[np.uint8], attributes: Features | None
    ) -> tuple[Tensor, Tensor]:
        inputs = [torch.from_numpy(pixels)]
        if attributes is not None:
            inputs.append(torch.from_numpy(attributes))
        with torch.inference_mode():
            row = self._network(*(tensor.to(self._plan.device) for tensor in inputs))
        row = only_tensor(row).cpu()
        return row[:, : self.num_features], row[:, self.num_features :]
