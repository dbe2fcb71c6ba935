"""Measure a model through the predictor, the way that its callers will use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.core.errors import BadImageError, InputError, PackageError, Reason
from eagleray.data.encoding import encode_attributes, encode_targets
from eagleray.data.labelled import LabelledImages
from eagleray.evaluation.metrics import headline_names, measure
from eagleray.imaging import DecodedImage
from eagleray.inference.predictor import Predictor
from eagleray.io.fetch import fetch_image
from eagleray.tasks.outcome import Outcome, Prediction
from eagleray.tasks.tasks import Regression, Task

__all__ = ["Evaluation", "FailedImage", "evaluate"]

_MIN_READERS = 4  # storage answers several as quickly as one


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that could not be measured: its row, and why."""

    row: int
    uri: str
    reason: Reason
    message: str


@dataclass(frozen=True)
class Evaluation:
    """How a model did on a labelled set.

    Attributes:
        task: What the model answers.
        images: All of them, good and bad.
        rows: Indices of the M good ones, ascending, int64 (M,).
        outputs: Of the good ones, float32 tensor (M, num_labels), or (M, 1) for regression.
        targets: Of the good ones, encoded by the task (M, …).
        failures: The others.
    """

    task: Task
    images: LabelledImages
    rows: npt.NDArray[np.int64]
    outputs: Tensor
    targets: Tensor
    failures: tuple[FailedImage, ...]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every metric of the task by name, of the good images."""
        return measure(self.task, self.outputs, self.targets)

    @property
    def headline(self) -> dict[str, float]:
        """The few metrics that say it in short."""
        metrics = self.metrics
        return {name: metrics[name] for name in headline_names(self.task) if name in metrics}

    @property
    def num_images(self) -> int:
        """Images that were measured."""
        return len(self.rows)

    @property
    def num_failed(self) -> int:
        """Images that could not be read or decoded, and are not in the metrics."""
        return len(self.failures)


def evaluate(
    predictor: Predictor,
    images: LabelledImages,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predict every image and compare with its label.

    Reading and decoding go on in threads, ahead of the network.

    Args:
        predictor: The model on its device.
        images: Where they are, and what they show.
        progress: Called with the number of images that were done now, and of those that failed.

    Raises:
        InputError: None of the images can be decoded, a label is not one of the model's, or
            attributes that it takes are not there.
        PackageError: The model answers an image with what is no number.
    """
    task = predictor.task
    targets = encode_targets(task, images)
    attributes = encode_attributes(predictor.package.attributes, images)

    def read(uri: str) -> DecodedImage | Outcome:
        try:
            return predictor.preprocess(fetch_image(uri, predictor.package.contract))
        except BadImageError as error:
            return Outcome.from_error(error)

    rows: list[int] = []
    outputs: list[npt.NDArray[np.float32]] = []
    failures: list[FailedImage] = []
    num_threads = max(_MIN_READERS, predictor.decode_threads)
    done = 0
    batches = predictor.predict_ahead(
        images.uris, read, num_threads=num_threads, attributes=attributes
    )
    for batch in batches:
        known = len(failures)
        for row, outcome in enumerate(batch, start=done):
            if outcome.failure is not None:
                fault = outcome.failure
                failures.append(FailedImage(row, images.uris[row], fault.reason, fault.message))
            elif outcome.prediction is not None:
                rows.append(row)
                outputs.append(_output(task, outcome.prediction))
        done += len(batch)
        if progress is not None:
            progress(len(batch), len(failures) - known)
    if not rows:
        raise InputError(
            f"None of the {len(images):,} test images can be decoded; of the first: "
            f"{failures[0].message}."
        )
    answers = torch.from_numpy(np.stack(outputs))
    _require_numbers(predictor, images, rows, answers)
    return Evaluation(task, images, np.asarray(rows), answers, targets[rows], tuple(failures))


def _output(task: Task, prediction: Prediction) -> npt.NDArray[np.float32]:
    if isinstance(task, Regression):
        return np.asarray([prediction.value], np.float32)
    return prediction.probabilities


def _require_numbers(
    predictor: Predictor, images: LabelledImages, rows: list[int], outputs: Tensor
) -> None:
    odd = (~outputs.isfinite().all(dim=1)).nonzero()
    if len(odd):
        raise PackageError(
            f"Model {predictor.package.manifest.name!r} answers {len(odd):,} of {len(rows):,} "
            f"images with what is no number, first {images.uris[rows[int(odd[0])]]}; train it with "
            "a lower learning rate."
        )
