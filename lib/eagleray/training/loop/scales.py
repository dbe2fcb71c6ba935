"""Multi-scale training: the images of each step have a side of their own.

A network that sees objects at several sizes finds them at several sizes (Redmon and Farhadi 2016,
"YOLO9000", section 3). Sides are multiples of 32, to which all images of a step are resized.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError

__all__ = ["resize_pixels", "scaled_sizes"]

_MULTIPLE = 32  # the stride of the deepest feature maps

Size = tuple[int, int]


def scaled_sizes(size: Size, change: float) -> tuple[Size, ...]:
    """Return the sizes (height, width) of the steps of a run, the smallest first.

    Args:
        size: (height, width) of the contract's images.
        change: Largest change of the height, as a fraction; the width changes by the same factor.

    Raises:
        InputError: If there are not two of them.
    """
    height, width = size
    first = max(1, int(np.ceil(height * (1 - change) / _MULTIPLE)))
    last = int(height * (1 + change) / _MULTIPLE)
    rows = [_MULTIPLE * number for number in range(first, last + 1)]
    if len(rows) < 2:
        raise InputError(
            f"multi_scale {change:g} needs two multiples of {_MULTIPLE} that are so near to the "
            f"image height of {height} pixels; choose a larger one, or leave it out."
        )
    return tuple((tall, _rounded(width * tall / height)) for tall in rows)


def _rounded(side: float) -> int:
    return max(_MULTIPLE, _MULTIPLE * round(side / _MULTIPLE))


def resize_pixels(pixels: npt.NDArray[np.uint8], size: Size) -> npt.NDArray[np.uint8]:
    """Resize an image (H, W, C) to a height and a width: by areas where it becomes smaller."""
    height, width = size
    shrinks = height * width < pixels.shape[0] * pixels.shape[1]
    filtering = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(pixels, (width, height), interpolation=filtering)
    return np.asarray(resized, np.uint8).reshape(height, width, -1)
