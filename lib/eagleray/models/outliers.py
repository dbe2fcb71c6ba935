"""Statistics of a classifier's features, by which unusual images are found: `outliers.safetensors`.

An image is unusual if its features leave the subspace that those of the training images span, or if
no label stands out for them. The distance is that of Wang et al., "ViM: Out-Of-Distribution with
Virtual-logit Matching" (CVPR 2022), around the mean of the features:

    distance = weight * |residual of the features| - confidence of the logits
    score    = share of the validation images with a smaller distance

The weight makes both terms vary alike among validation images.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import PackageError

__all__ = ["MAX_LEVELS", "OutlierStatistics", "parse_outliers"]

Floats = npt.NDArray[np.float32]

MAX_LEVELS = 1000
"""Maximum number of levels: a score has three digits."""


@dataclass(frozen=True)
class OutlierStatistics:
    """What the outlier score of an image is computed from, all float32.

    Attributes:
        mean: Mean of the features of training images (F,).
        directions: Orthonormal directions in which they vary most (F, D), D below F; the
            strongest first.
        weight: Weight of the residual (1,), above 0.
        levels: Distances of validation images at equal steps of their share (L,), ascending.
    """

    mean: Floats
    directions: Floats
    weight: Floats
    levels: Floats

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        from safetensors.numpy import save

        return save(
            {one.name: np.ascontiguousarray(getattr(self, one.name)) for one in fields(self)}
        )


def parse_outliers(content: bytes, where: str) -> OutlierStatistics:
    """Parse the content of an `outliers.safetensors`.

    Raises:
        PackageError: If it is not valid; the message begins with `where`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
    except (SafetensorError, KeyError) as error:
        raise PackageError(f"{where} is not a safetensors file ({error}).") from None
    try:
        return _checked(tensors)
    except ValueError as error:
        raise PackageError(f"{where} is refused: {error}.") from None


def _checked(tensors: dict[str, npt.NDArray[np.generic]]) -> OutlierStatistics:
    """Return the statistics of tensors by name.

    Raises:
        ValueError: If they are not valid; the message ends a sentence.
    """
    names = [one.name for one in fields(OutlierStatistics)]
    if sorted(tensors) != sorted(names):
        raise ValueError(f"it holds {', '.join(sorted(tensors))[:200]}, not {', '.join(names)}")
    for name, array in tensors.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers that are not finite float32 numbers")
    found = OutlierStatistics(**{name: np.asarray(tensors[name], np.float32) for name in names})
    length, count = found.mean.size, found.directions.shape[-1] if found.directions.ndim else 0
    shapes = {
        "mean": (length,),
        "directions": (length, count),
        "weight": (1,),
        "levels": (found.levels.size,),
    }
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} has the shape {tensors[name].shape}, not {shape}")
    if not 0 < count < length:
        raise ValueError(f"{count:,} directions of {length:,} features leave no residual")
    if not 0 < found.levels.size <= MAX_LEVELS or (np.diff(found.levels) < 0).any():
        raise ValueError(f"levels are 1 to {MAX_LEVELS:,} numbers in ascending order")
    if found.weight[0] <= 0:
        raise ValueError("weight is above 0")
    return found
