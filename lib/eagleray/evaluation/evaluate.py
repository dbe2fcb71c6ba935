"""Measures a model on labelled images, through the predictor that batch jobs and services use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.core.errors import BadImageError, InputError, PackageError, Reason
from eagleray.data.encoding import encode_attributes, encode_targets
from eagleray.data.labelled import LabelledImages
from eagleray.imaging import DecodedImage
from eagleray.imaging.tiles import Tiling
from eagleray.inference.predictor import Predictor
from eagleray.io.fetch import fetch_image
from eagleray.models.attributes import Features
from eagleray.tasks import Outcome, Prediction, Task
from eagleray.tasks.padding import join_padded

__all__ = ["Evaluation", "FailedImage", "evaluate"]

_MIN_READERS = 4  # storage answers several as quickly as one


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that could not be measured.

    Attributes:
        row: Row of the image in the data.
        uri: Location of the image.
        reason: Reason code.
        message: One sentence for a person.
    """

    row: int
    uri: str
    reason: Reason
    message: str


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a model for labelled images, and the metrics that follow from them.

    Attributes:
        task: The task of the model.
        images: All images of the data.
        rows: Rows of the M images that were measured, ascending, int64 (M,).
        outputs: Their observations, such as activated outputs, float32 tensor (M, …).
        targets: Their encoded targets (M, …).
        failures: The images that could not be measured.
    """

    task: Task
    images: LabelledImages
    rows: npt.NDArray[np.int64]
    outputs: Tensor
    targets: Tensor
    failures: tuple[FailedImage, ...]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every metric of the task by name."""
        return self.task.measure(self.outputs, self.targets)

    @property
    def headline(self) -> dict[str, float]:
        """The metrics that summarise the model."""
        metrics = self.metrics
        return {name: metrics[name] for name in self.task.headline_names if name in metrics}

    def uri(self, position: int) -> str:
        """Return the location of an image by its position among those measured."""
        return self.images.uris[int(self.rows[position])]

    @property
    def num_images(self) -> int:
        """Number of images that were measured."""
        return len(self.rows)

    @property
    def num_failed(self) -> int:
        """Number of images that could not be read or decoded, and are not in the metrics."""
        return len(self.failures)


def evaluate(
    predictor: Predictor,
    images: LabelledImages,
    *,
    tiling: Tiling | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predict every image and encode its label; threads read and decode ahead of the network.

    Args:
        predictor: The model on its device.
        images: The labelled images.
        tiling: How large images are divided into tiles, one image after the other; None for none.
        progress: Called after each batch with its number of images, and of those that failed.

    Raises:
        InputError: If no image can be decoded, a label is not one of the model's, or attributes
            that the model takes are missing.
        PackageError: If the model's output for an image is not finite.
    """
    task = predictor.task
    targets = encode_targets(task, images)
    attributes = encode_attributes(predictor.package.attributes, images)

    rows: list[int] = []
    outputs: list[Tensor] = []
    failures: list[FailedImage] = []
    done = 0
    for batch in _predict(predictor, images, attributes, tiling):
        known = len(failures)
        for row, outcome in enumerate(batch, start=done):
            if outcome.failure is not None:
                failure = outcome.failure
                failures.append(FailedImage(row, images.uris[row], failure.reason, failure.message))
            elif outcome.prediction is not None:
                rows.append(row)
                observed = _observe(task, outcome.prediction, images, row)
                outputs.append(torch.from_numpy(observed)[None])
        done += len(batch)
        if progress is not None:
            progress(len(batch), len(failures) - known)
    if not rows:
        raise InputError(
            f"None of the {len(images):,} test images can be decoded; of the first: "
            f"{failures[0].message}."
        )
    stacked = join_padded(outputs)
    _require_finite(predictor, images, rows, stacked)
    return Evaluation(task, images, np.asarray(rows), stacked, targets[rows], tuple(failures))


def _predict(
    predictor: Predictor,
    images: LabelledImages,
    attributes: Features | None,
    tiling: Tiling | None,
) -> Iterator[list[Outcome]]:
    contract = predictor.package.contract

    def read(uri: str) -> DecodedImage | Outcome:
        try:
            return predictor.preprocess(fetch_image(uri, contract))
        except BadImageError as error:
            return Outcome.from_error(error)

    if tiling is None:
        num_threads = max(_MIN_READERS, predictor.decode_threads)
        yield from predictor.predict_ahead(
            images.uris, read, num_threads=num_threads, attributes=attributes
        )
        return
    for row, uri in enumerate(images.uris):
        try:
            image = predictor.preprocess(fetch_image(uri, contract), tiling=tiling)
        except BadImageError as error:
            image = Outcome.from_error(error)
        features = None if attributes is None else attributes[row : row + 1]
        yield predictor.predict_decoded([image], features)


def _observe(
    task: Task, prediction: Prediction, images: LabelledImages, row: int
) -> npt.NDArray[np.float32]:
    try:
        return task.observe(prediction, images.labels[row])
    except InputError as error:
        raise InputError(f"The label of {images.place(row)} cannot be used: {error}") from None


def _require_finite(
    predictor: Predictor, images: LabelledImages, rows: list[int], outputs: Tensor
) -> None:
    odd = (~outputs.flatten(1).isfinite().all(dim=1)).nonzero()
    if len(odd):
        raise PackageError(
            f"Model {predictor.package.manifest.name!r} has outputs that are not finite for "
            f"{len(odd):,} of {len(rows):,} images, first {images.uris[rows[int(odd[0])]]}; train "
            "it with a lower learning rate."
        )
