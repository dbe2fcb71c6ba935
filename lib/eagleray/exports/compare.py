"""Compares the outputs of an exported model with those of the original, image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

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
    """

    max_difference: float
    max_relative: float = math.inf
    max_mean: float = math.inf
    min_agreement: float = 0.0


def tolerance_of(package: ModelPackage) -> Tolerance:
    """Return what the export of a package may differ by.

    The runtimes' kernels for quantized networks differ as much as quantization changes outputs, so
    such a package states a tolerance of its own.
    """
    if package.manifest.quantization is not None:
        return Tolerance(package.golden.tolerance, min_agreement=MIN_AGREEMENT)
    task = package.task
    if task.exported_names:
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
    """

    uri: str
    difference: float
    original: str | None
    exported: str | None
    agrees: bool


@dataclass(frozen=True)
class Comparison:
    """The comparison of an exported model with the original.

    Attributes:
        images: The images, in order.
        mean_difference: Mean difference of an output.
        variation: Mean absolute deviation of the original's outputs between images; None where
            there is none.
        tolerance: What is allowed.
    """

    images: tuple[ComparedImage, ...]
    mean_difference: float
    variation: float | None
    tolerance: Tolerance

    @cached_property
    def worst(self) -> ComparedImage:
        """The image with the largest difference; one whose outputs are no numbers comes first."""
        return max(
            self.images,
            key=lambda one: (math.isnan(one.difference), one.difference, not one.agrees),
        )

    @property
    def max_difference(self) -> float:
        """Largest difference of an output."""
        return self.worst.difference

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

    Args:
        task: The task of both.
        uris: Locations of the N images.
        original: Activated outputs and predictions of the original.
        exported: Activated outputs and predictions of the exported model.
        tolerance: What is allowed.
    """
    (expected, predictions), (found, found_predictions) = original, exported
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    images = tuple(
        ComparedImage(
            uri,
            task.max_difference(found[row : row + 1], expected[row : row + 1]),
            task.describe(one),
            task.describe(other),
            task.same_answer(one, other),
        )
        for row, (uri, one, other) in enumerate(
            zip(uris, predictions, found_predictions, strict=True)
        )
    )
    mean = task.mean_difference(found, expected)
    return Comparison(images, mean, task.variation(expected), tolerance)
