"""Puts four images together into one, for detection: a mosaic (Bochkovskiy et al. 2020, YOLOv4).

The images meet at a point near the middle. Each is made smaller by a factor of its own, and what
does not fit into its quarter is cut off, so that objects are seen at many sizes and without much of
their surroundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from eagleray.imaging.geometry import Placement

__all__ = ["Tile", "draw_tiles", "put_together"]

Pixels = npt.NDArray[np.uint8]

_MIDDLE = (0.3, 0.7)  # where the images meet, as shares of the sides
_SCALE = (0.5, 1.0)
_FILL = 114


@dataclass(frozen=True, slots=True)
class Tile:
    """The place of one image in a mosaic.

    Attributes:
        window: Edges x1, y1, x2, y2 of its quarter.
        scale: Factor by which it is made smaller.
        right: Whether its quarter is on the right.
        lower: Whether its quarter is at the bottom.
    """

    window: tuple[int, int, int, int]
    scale: float
    right: bool
    lower: bool


def draw_tiles(unit: npt.NDArray[np.float64], size: tuple[int, int]) -> tuple[Tile, ...]:
    """Return the places of four images.

    Args:
        unit: Six numbers from 0 to 1: where the images meet, and their scales.
        size: (height, width) of the mosaic.
    """
    height, width = size
    low, high = _MIDDLE
    x, y = (round((low + (high - low) * unit[at]) * side) for at, side in ((0, width), (1, height)))
    scales = _SCALE[0] + (_SCALE[1] - _SCALE[0]) * unit[2:]
    corners = ((False, False), (True, False), (False, True), (True, True))
    return tuple(
        Tile(
            (x if right else 0, y if lower else 0, width if right else x, height if lower else y),
            float(scale),
            right,
            lower,
        )
        for (right, lower), scale in zip(corners, scales, strict=True)
    )


def put_together(
    images: Sequence[Pixels], tiles: Sequence[Tile], size: tuple[int, int]
) -> tuple[Pixels, list[Placement]]:
    """Return the mosaic of images, and where the pixels of each are.

    Args:
        images: uint8 arrays (h, w, C).
        tiles: The place of each image.
        size: (height, width) of the mosaic.
    """
    mosaic = np.full((*size, images[0].shape[2]), _FILL, np.uint8)
    placements = []
    for pixels, tile in zip(images, tiles, strict=True):
        rows, columns = (max(1, round(side * tile.scale)) for side in pixels.shape[:2])
        small = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
        small = small.reshape(rows, columns, -1)
        x1, y1, x2, y2 = tile.window
        # The corner that is nearest to the middle of the mosaic stays.
        left, top = (x1 if tile.right else x2 - columns), (y1 if tile.lower else y2 - rows)
        seen = (max(x1, left), max(y1, top), min(x2, left + columns), min(y2, top + rows))
        mosaic[seen[1] : seen[3], seen[0] : seen[2]] = small[
            seen[1] - top : seen[3] - top, seen[0] - left : seen[2] - left
        ]
        scale_x, scale_y = columns / pixels.shape[1], rows / pixels.shape[0]
        placements.append(Placement(scale_x, scale_y, left, top))
    return mosaic, placements
