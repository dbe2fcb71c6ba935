"""Pastes the small masks of boxes into an image, as torchvision's `paste_masks_in_image` does.

A mask is enlarged to the whole pixels of its box by bilinear interpolation, with a margin of zeros
around it; a pixel of at least half is of the object. What is pasted is the part of the image that
the box covers, so an image of 24 megapixels takes no more than its objects do.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from eagleray.tasks.run_lengths import encode_runs

__all__ = ["PastedMask", "encode_pasted", "paste_mask"]

_MARGIN = 1  # places of zeros around a mask
_MIN_PROBABILITY = 0.5

Floats = npt.NDArray[np.floating]


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
    padded = np.pad(mask, _MARGIN)
    x1, y1, x2, y2 = _whole_pixels(box, len(padded) / len(mask))
    size = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    left, top = max(x1, 0), max(y1, 0)
    right, bottom = min(x1 + size[0], width), min(y1 + size[1], height)
    if right <= left or bottom <= top:
        return PastedMask(np.zeros((0, 0), bool), 0, 0)
    wide = cv2.resize(padded, size, interpolation=cv2.INTER_LINEAR)
    part = wide[top - y1 : bottom - y1, left - x1 : right - x1]
    return PastedMask(part > _MIN_PROBABILITY, left, top)


def _whole_pixels(box: Floats, scale: float) -> list[int]:
    """Return a box that is enlarged around its centre, without the fractions of its edges."""
    low, high = box[:2].astype(np.float32), box[2:].astype(np.float32)
    centre, half = (low + high) * np.float32(0.5), (high - low) * np.float32(0.5 * scale)
    edges: list[int] = np.concatenate([centre - half, centre + half]).astype(np.int64).tolist()
    return edges


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
