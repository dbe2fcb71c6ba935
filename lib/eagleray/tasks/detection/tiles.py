"""Puts the detections of an image's tiles together.

An object in the overlap of two tiles is found twice. Of detections of one label that are whole, the
best stays, as in one image. A detection that ends at the edge of its tile may be a part of an
object: it gives way to one that sees the same pixels of the overlap, whole ones first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eagleray.imaging.tiles import Window
from eagleray.tasks.detection.objects import ROW, box_iou

__all__ = ["TileDetections", "join_detections"]

Floats = npt.NDArray[np.float32]

_EDGE = 0.01  # of a tile's side: so near to its edge, an object may go on beyond
_MIN_EDGE = 2.0  # pixels
_MIN_SHARED = 0.6  # of the smaller of two boxes in the overlap, for them to be of one object
_MIN_TRUST = 0.5  # of a part's score, that a detection needs to take its place


class TileDetections:
    """The detections of all tiles of an image.

    Args:
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._rows: list[Floats] = []
        self._windows: list[npt.NDArray[np.float64]] = []

    def add(self, window: Window, rows: Floats) -> None:
        """Add the detections of a tile.

        Args:
            window: The tile.
            rows: Detections (M, 6) in pixels of the tile; see `tasks.objects`.
        """
        found = rows[~(rows[:, 4] <= 0)].copy()  # also those that are not finite
        found[:, 0:4:2] += window.left
        found[:, 1:4:2] += window.top
        self._rows.append(found)
        self._windows.append(np.tile(np.asarray(window.edges, np.float64), (len(found), 1)))

    def joined(self, max_overlap: float) -> Floats:
        """Return the detections (K, 6) of the image, best first.

        Args:
            max_overlap: Largest intersection over union of two objects of one label.
        """
        if not self._rows:
            return np.empty((0, ROW), np.float32)
        rows, windows = np.concatenate(self._rows), np.concatenate(self._windows)
        if not np.isfinite(rows).all():
            return np.full((1, ROW), np.nan, np.float32)
        return join_detections(rows, windows, self._size, max_overlap)


def join_detections(
    rows: Floats,
    windows: npt.NDArray[np.float64],
    size: tuple[int, int],
    max_overlap: float,
) -> Floats:
    """Return those of the detections that stay (K, 6), best first.

    Args:
        rows: Detections (M, 6) in pixels of the image.
        windows: Edges x1, y1, x2, y2 of the tile of each (M, 4).
        size: Width and height of the image in pixels.
        max_overlap: Largest intersection over union of two objects of one label.
    """
    is_cut = _cut(rows, windows, size)
    areas = (rows[:, 2:4] - rows[:, :2]).prod(axis=1)
    # Whole ones first, by their scores; then parts, the largest first. Ties go by place.
    order = np.lexsort((np.where(is_cut, -areas, -rows[:, 4]), is_cut))
    kept: list[int] = []
    for label in np.unique(rows[:, 5]):
        own = order[rows[order, 5] == label]
        kept += _keep(own, rows.astype(np.float64), windows, is_cut, max_overlap)
    chosen = np.asarray(sorted(kept, key=lambda place: (-rows[place, 4], place)), np.int64)
    return rows[chosen]


def _cut(
    rows: Floats, windows: npt.NDArray[np.float64], size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Return which detections end at an edge of their tile that is none of the image."""
    sides = windows[:, 2:] - windows[:, :2]
    near = np.maximum(_MIN_EDGE, _EDGE * sides)
    starts = (windows[:, :2] > 0) & (rows[:, :2] < windows[:, :2] + near)
    ends = (windows[:, 2:] < np.asarray(size)) & (rows[:, 2:4] > windows[:, 2:] - near)
    return np.asarray((starts | ends).any(axis=1), np.bool_)


def _keep(
    order: npt.NDArray[np.int64],
    rows: npt.NDArray[np.float64],
    windows: npt.NDArray[np.float64],
    is_cut: npt.NDArray[np.bool_],
    max_overlap: float,
) -> list[int]:
    """Return the places of the detections of one label that stay."""
    kept = np.empty(len(order), np.int64)
    count = 0
    for place in order.tolist():
        others = kept[:count]
        same = box_iou(rows[place : place + 1, :4], rows[others, :4])[0] > max_overlap
        if is_cut[place] and not same.any():
            same = _sees(rows[place], windows[place], rows[others], windows[others])
        if not same.any():
            kept[count] = place
            count += 1
    return [int(place) for place in kept[:count]]


def _sees(
    part: npt.NDArray[np.float64],
    window: npt.NDArray[np.float64],
    others: npt.NDArray[np.float64],
    windows: npt.NDArray[np.float64],
) -> npt.NDArray[np.bool_]:
    """Return which detections of other tiles see what a part shows in the overlap of the tiles."""
    low = np.maximum(windows[:, :2], window[:2])
    high = np.minimum(windows[:, 2:], window[2:])
    own = np.concatenate([np.maximum(part[:2], low), np.minimum(part[2:4], high)], axis=1)
    seen = np.concatenate(
        [np.maximum(others[:, :2], low), np.minimum(others[:, 2:4], high)], axis=1
    )
    shared_low, shared_high = (
        np.maximum(own[:, :2], seen[:, :2]),
        np.minimum(own[:, 2:], seen[:, 2:]),
    )
    shared = (shared_high - shared_low).clip(0).prod(axis=1)
    smaller = np.minimum(
        *((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (own, seen))
    )
    is_other_tile = (windows != window).any(axis=1)
    is_same = (shared > 0) & (shared >= _MIN_SHARED * smaller)
    result: npt.NDArray[np.bool_] = is_other_tile & is_same & (others[:, 4] >= _MIN_TRUST * part[4])
    return result
