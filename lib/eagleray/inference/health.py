"""Checks the health of a loaded model: its outputs for the golden images of its package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from eagleray.core.errors import BadImageError, PackageError
from eagleray.core.limits import MAX_GOLDEN_PIXELS
from eagleray.core.types import HEALTH_TOLERANCE
from eagleray.imaging import decode
from eagleray.models.attributes import Features, encode_mappings
from eagleray.models.package import GoldenImage, ModelPackage

__all__ = ["Forward", "GoldenCheck", "check_golden_images"]

Forward = Callable[[npt.NDArray[np.uint8], Features | None], npt.NDArray[np.float32]]
"""Runs a network over decoded images, and attributes if it takes any; returns the outputs."""


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """The result of predicting the golden images of a package.

    Attributes:
        num_images: Number of golden images.
        max_difference: Largest difference of an output from the expected output.
        tolerance: Largest difference of a healthy model.
    """

    num_images: int
    max_difference: float
    tolerance: float

    @property
    def healthy(self) -> bool:
        """Whether every output is as expected; NaN is not."""
        return self.max_difference <= self.tolerance


def check_golden_images(
    package: ModelPackage, forward: Forward, *, precision: str, batch_size: int
) -> GoldenCheck:
    """Predict the golden images of a package and compare them with the expected outputs.

    Args:
        package: The model package.
        forward: Runs the package's network.
        precision: Precision of the network, which decides the tolerance.
        batch_size: Number of images that are decoded and predicted at a time.

    Raises:
        PackageError: If a golden image cannot be decoded.
    """
    golden = package.golden
    # A package may state a smaller tolerance than Eagleray's, never a larger one.
    tolerance = min(golden.tolerance, HEALTH_TOLERANCE[precision] * package.task.unit)
    differences = [
        _difference(package, golden.images[start : start + batch_size], forward)
        for start in range(0, len(golden.images), batch_size)
    ]
    max_difference = float(np.max(differences, initial=0.0))  # NaN stays
    return GoldenCheck(len(golden.images), max_difference, tolerance)


def _difference(package: ModelPackage, images: Sequence[GoldenImage], forward: Forward) -> float:
    """Return the largest difference of an output of these images from the expected output."""
    contract = package.contract
    max_pixels = min(contract.max_pixels, MAX_GOLDEN_PIXELS)
    limited = contract.model_copy(update={"max_pixels": max_pixels})
    try:
        pixels = [decode(package.files[item.file], limited).pixels for item in images]
    except BadImageError as error:
        raise PackageError(
            f"Model {package.manifest.name!r} has a golden image that cannot be decoded "
            f"({error.message})."
        ) from error
    attributes = None
    if package.attributes:
        attributes = encode_mappings(package.attributes, [item.attributes for item in images])
    expected = np.asarray([item.outputs for item in images])
    outputs = torch.from_numpy(forward(np.stack(pixels), attributes))
    return package.task.max_difference(package.task.summarize(outputs).numpy(), expected)
