"""Pastes the small masks of boxes into an image.

Each pixel of the image takes the mask where its centre lies in the box, by bilinear interpolation
with zeros around the mask; a pixel of more than a half is of the object. It is what torchvision's
`paste_masks_in_image` computes, without the rounding of boxes to whole pixels there, which moves
small objects by up to a pixel. Only the part of the image that the box covers is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.tasks.run_lengths import encode_runs

__all__ = ["PastedMask", "encode_pasted", "paste_mask"]

_MIN_PROBABILITY = 0.5
_MIN_SIDE = 1e-6  # of a box, in pixels

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class PastedMask:
    """The pixels of an object in the part of an image that its box covers.

    Attributes:
        pixels: Whether each of them belongs to the object, bool (h, w).
        left: Pixels of the image to the left of the part.
        top: Pixels of the image above the part.
    """

    pixels: npt.NDArray[np.bool_]
    left: int
    top: int


def paste_mask(mask: npt.NDArray[np.float32], box: Floats, height: int, width: int) -> PastedMask:
    """Paste one mask.

    Args:
        mask: Probabilities (S, S) of the places of the box.
        box: x1, y1, x2, y2 in pixels of the image; it may reach beyond the image.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    x1, y1, x2, y2 = box.tolist()
    left, across = _weights(x1, x2, width, len(mask))
    top, down = _weights(y1, y2, height, len(mask))
    return PastedMask(down @ mask @ across.T > _MIN_PROBABILITY, left, top)


def _weights(low: float, high: float, length: int, side: int) -> tuple[int, Floats]:
    """Return the first pixel with its centre between two places, and weights of a mask's places.

    Args:
        low: The first place, in pixels.
        high: The last place, in pixels.
        length: Pixels of this side of the image.
        side: Places of the mask between the two.

    Returns:
        Pixels before the first one, and float32 weights (num_pixels, side).
    """
    first, last = max(0, math.ceil(low - 0.5)), min(length, math.floor(high - 0.5) + 1)
    centres = np.arange(first, last) + 0.5
    places = (centres - low) * (side / max(high - low, _MIN_SIDE)) - 0.5
    weights = 1 - np.abs(places[:, None] - np.arange(side))
    return first, weights.clip(0).astype(np.float32)


def encode_pasted(pasted: PastedMask, height: int, width: int) -> str:
    """Return the mask of a whole image in COCO's compressed run lengths.

    Args:
        pasted: The mask in a part of the image.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    rows, columns = pasted.pixels.shape
    framed = np.zeros((columns, rows + 2), np.int8)
    framed[:, 1:-1] = pasted.pixels.T
    column, row = np.nonzero(np.diff(framed, axis=1))  # where runs begin and end, in turn
    edges = (pasted.left + column) * height + pasted.top + row
    joins = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # at the end of a column
    edges = np.delete(edges, np.concatenate([1 + 2 * joins, 2 + 2 * joins]))
    return encode_runs(np.diff(edges, prepend=0, append=height * width), height, width)
