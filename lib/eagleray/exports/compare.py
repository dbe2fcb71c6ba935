"""Compares the outputs of an exported model with those of the original, image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eagleray.exports.base import output_names
from eagleray.models.package import ModelPackage
from eagleray.tasks import Prediction, Task

__all__ = ["ComparedImage", "Comparison", "Tolerance", "compare", "tolerance_of"]

FLOAT_TOLERANCE = 1e-3
"""Maximum difference of an output of a float model, in the task's unit."""

MAX_RELATIVE = 0.01
"""Maximum mean difference of a float model, as a share of the mean absolute deviation of the
original's outputs between images. It finds wrong outputs that are all small, such as the
probabilities of many labels that are about equally likely."""

MIN_AGREEMENT = 0.99
"""Minimum share of images for which a quantized model, or a detector, predicts the same; one image
may differ however few there are."""

MIN_SIMILARITY = 0.995
"""Minimum mean similarity of the predictions of a float model, for a task that has one."""

MAX_OBJECTS_DIFFERENCE = 0.25
"""Maximum difference of the objects of an image, whose mean is within `FLOAT_TOLERANCE`: rounding
may choose another one of two objects that overlap, or have scores at the lowest one."""


@dataclass(frozen=True)
class Tolerance:
    """What a comparison allows.

    Attributes:
        max_difference: Maximum difference of an output.
        max_relative: Maximum mean difference as a share of the outputs' variation between images.
        max_mean: Maximum mean difference.
        min_agreement: Minimum share of images with the same prediction.
        min_similarity: Minimum mean similarity of predictions, where the task has one.
    """

    max_difference: float
    max_relative: float = math.inf
    max_mean: float = math.inf
    min_agreement: float = 0.0
    min_similarity: float = 0.0


def tolerance_of(package: ModelPackage) -> Tolerance:
    """Return what the export of a package may differ by.

    The runtimes' kernels for quantized networks differ as much as quantization changes outputs, so
    such a package states a tolerance of its own.
    """
    task = package.task
    if package.manifest.quantization is not None:
        allowed = package.golden.tolerance
        if task.similarity_name is not None:
            return Tolerance(allowed, min_similarity=task.quantized_similarity)
        return Tolerance(allowed, min_agreement=MIN_AGREEMENT)
    if task.similarity_name is not None:
        most = FLOAT_TOLERANCE * task.unit
        return Tolerance(most, MAX_RELATIVE, min_similarity=MIN_SIMILARITY)
    if len(output_names(package)) > 1:
        return Tolerance(
            MAX_OBJECTS_DIFFERENCE * task.unit,
            max_mean=FLOAT_TOLERANCE * task.unit,
            min_agreement=MIN_AGREEMENT,
        )
    return Tolerance(FLOAT_TOLERANCE * task.unit, MAX_RELATIVE)


@dataclass(frozen=True)
class ComparedImage:
    """The comparison of one image.

    Attributes:
        uri: Location of the image.
        difference: Largest difference of an output; NaN if one is not a number.
        original: What the original predicts.
        exported: What the exported model predicts.
        agrees: Whether both predict the same.
        similarity: How alike the predictions are, from 0 to 1; None where the task does not say.
    """

    uri: str
    difference: float
    original: str | None
    exported: str | None
    agrees: bool
    similarity: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The comparison of an exported model with the original.

    Attributes:
        images: The images, in order.
        mean_difference: Mean difference of an output.
        variation: Mean absolute deviation of the original's outputs between images; None where
            there is none.
        tolerance: What is allowed.
        similarity_name: Name of the similarity of predictions; None where the task has none.
    """

    images: tuple[ComparedImage, ...]
    mean_difference: float
    variation: float | None
    tolerance: Tolerance
    similarity_name: str | None = None

    @cached_property
    def worst(self) -> ComparedImage:
        """The least similar image, or the one with the largest difference; NaN comes first."""
        return max(
            self.images,
            key=lambda one: (
                math.isnan(one.difference),
                -(one.similarity or 0.0),
                one.difference,
                not one.agrees,
            ),
        )

    @property
    def max_difference(self) -> float:
        """Largest difference of an output; NaN if one is not a number."""
        return float(np.max([image.difference for image in self.images]))

    @property
    def similarity(self) -> float | None:
        """Mean similarity of the predictions; None where the task has none."""
        if self.similarity_name is None:
            return None
        return float(np.mean([image.similarity or 0.0 for image in self.images]))

    @property
    def agreement(self) -> float:
        """Share of images for which both predict the same."""
        return sum(image.agrees for image in self.images) / len(self.images)

    @property
    def relative_difference(self) -> float | None:
        """Mean difference as a share of the variation; None if the outputs do not vary."""
        return self.mean_difference / self.variation if self.variation else None

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the comparison fails, as predicates; none if it passes."""
        allowed = self.tolerance
        faults = []
        if not self.max_difference <= allowed.max_difference:  # nor if it is NaN
            faults.append(
                f"differs by {self.max_difference:.3g} where {allowed.max_difference:.3g} is "
                "allowed"
            )
        if self.mean_difference > allowed.max_mean:
            faults.append(
                f"differs by {self.mean_difference:.3g} on average where {allowed.max_mean:.3g} is "
                "allowed"
            )
        relative = self.relative_difference
        if relative is not None and relative > allowed.max_relative:
            faults.append(
                f"differs by {relative:.1%} of what distinguishes one image from another where "
                f"{allowed.max_relative:.0%} is allowed"
            )
        alike = self.similarity
        if alike is not None and alike < allowed.min_similarity:
            faults.append(
                f"has a mean {self.similarity_name} of {alike:.4f} with the original where "
                f"{allowed.min_similarity:g} is needed"
            )
        num_different = sum(not image.agrees for image in self.images)
        if num_different > 1 and self.agreement < allowed.min_agreement:
            faults.append(
                f"predicts the same for {self.agreement:.1%} of the images where "
                f"{allowed.min_agreement:.0%} is needed"
            )
        return tuple(faults)

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as JSON, with every image; NaN and infinity are null."""
        return {
            "images": len(self.images),
            "max_difference": _finite(self.max_difference),
            "mean_difference": _finite(self.mean_difference),
            "relative_difference": _finite(self.relative_difference),
            "label_agreement": self.agreement,
            "similarity": self.similarity,
            "similarity_name": self.similarity_name,
            "tolerance": {name: _finite(value) for name, value in asdict(self.tolerance).items()},
            "passed": not self.faults,
            "worst": self.worst.uri,
            "each": [
                {**asdict(image), "difference": _finite(image.difference)} for image in self.images
            ],
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def compare(
    task: Task,
    uris: Sequence[str],
    original: tuple[npt.NDArray[np.float32], Sequence[Prediction]],
    exported: tuple[npt.NDArray[np.float32], Sequence[Prediction]],
    tolerance: Tolerance,
) -> Comparison:
    """Compare the outputs (N, …) and predictions of two models, N of at least 1.

    Of outputs with values for every pixel the summaries are compared, see `Task.summarize`.

    Args:
        task: The task of both.
        uris: Locations of the N images.
        original: Activated outputs and predictions of the original.
        exported: Activated outputs and predictions of the exported model.
        tolerance: What is allowed.
    """
    (outputs, predictions), (found_outputs, found_predictions) = original, exported
    expected, found = _summaries(task, outputs), _summaries(task, found_outputs)
    images = tuple(
        ComparedImage(
            uri,
            task.max_difference(found[row : row + 1], expected[row : row + 1]),
            task.describe(one),
            task.describe(other),
            task.same_answer(one, other),
            None if task.similarity_name is None else task.similarity(one, other),
        )
        for row, (uri, one, other) in enumerate(
            zip(uris, predictions, found_predictions, strict=True)
        )
    )
    mean = task.mean_difference(found, expected)
    variation = task.variation(expected)
    return Comparison(images, mean, variation, tolerance, task.similarity_name)


def _summaries(task: Task, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the summary of each image (N, num_values)."""
    found: npt.NDArray[np.float32] = task.summarize(torch.from_numpy(outputs)).numpy()
    return found.astype(np.float64)
