"""Makes masks from polygons, run lengths and arrays of pixels, and pixels from masks.

The rasterisation of polygons and the encoding of runs are those of COCO's tools, in the
implementation of faster-coco-eval. What comes from files is checked before that gets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.tasks.annotation import MAX_OBJECTS, Mask
from eagleray.tasks.run_lengths import MAX_MASK_PIXELS, encode_runs, runs_of_numbers

__all__ = [
    "Box",
    "box_of",
    "mask_of_pixels",
    "mask_of_polygons",
    "mask_of_runs",
    "masks_of_indices",
    "pixels_of",
]

Box = tuple[float, float, float, float]
"""Left edge, upper edge, width and height, in pixels."""

_MAX_POINTS = 100_000  # of one object
_MAX_RUNS = 20_000_000  # of one image


def mask_of_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Mask:
    """Return the union of polygons.

    Args:
        polygons: Of each polygon x and y of its points in turn, in pixels.
        height: Height of the image.
        width: Width of the image.

    Raises:
        ValueError: If a polygon cannot be drawn; the message completes a sentence about it.
    """
    from faster_coco_eval.core import mask as coco

    _require_drawable(height, width)
    if sum(map(len, polygons)) > 2 * _MAX_POINTS:
        raise ValueError(f"it has more than {_MAX_POINTS:,} points")
    for points in polygons:
        if len(points) % 2:
            raise ValueError("it has an x without its y")
        if any(
            not -side <= value <= 2 * side for value, side in _with_sides(points, width, height)
        ):
            raise ValueError("it has points far outside of the image")
    merged = coco.merge(
        coco.frPyObjects([list(map(float, one)) for one in polygons], height, width)
    )
    return _mask(merged, height, width)


def _with_sides(points: Sequence[float], width: int, height: int) -> list[tuple[float, int]]:
    return [(value, height if place % 2 else width) for place, value in enumerate(points)]


def mask_of_runs(runs: Sequence[int] | npt.NDArray[Any], height: int, width: int) -> Mask:
    """Return the mask of run lengths of 0 and 1 in turn, column by column.

    Raises:
        ValueError: If they are not the runs of such an image.
    """
    from faster_coco_eval.core import mask as coco

    _require_drawable(height, width)
    lengths = [int(run) for run in runs]
    if not lengths or min(lengths) < 0 or sum(lengths) != height * width:
        raise ValueError(f"its runs are not those of {height} x {width} pixels")
    if lengths[-1] == 0:  # COCO's tools write no empty run at the end
        lengths.pop()
    size = [height, width]
    return _mask(coco.frPyObjects({"size": size, "counts": lengths}, height, width), height, width)


def mask_of_pixels(pixels: npt.NDArray[np.bool_]) -> Mask:
    """Return the mask of a boolean array (height, width).

    Raises:
        ValueError: If it has too many pixels.
    """
    from faster_coco_eval.core import mask as coco

    height, width = pixels.shape
    _require_drawable(height, width)
    return _mask(coco.encode(np.asfortranarray(pixels, dtype=np.uint8)), height, width)


def masks_of_indices(indices: npt.NDArray[np.integer[Any]]) -> dict[int, Mask]:
    """Return the mask of each number in an array (height, width), in ascending order.

    One pass over the columns finds the runs of all numbers, however many there are.

    Raises:
        ValueError: If the array has too many pixels, numbers or runs.
    """
    height, width = indices.shape
    _require_drawable(height, width)
    if np.count_nonzero(indices[1:] != indices[:-1]) > _MAX_RUNS:
        raise ValueError(f"it has more than {_MAX_RUNS:,} runs of equal pixels in its columns")
    runs = runs_of_numbers(indices)
    if len(runs) > MAX_OBJECTS:
        raise ValueError(f"it has {len(runs):,} different numbers, the limit is {MAX_OBJECTS:,}")
    return {
        number: Mask.model_construct(size=(height, width), counts=encode_runs(own, height, width))
        for number, own in runs.items()
    }


def box_of(mask: Mask) -> Box:
    """Return the smallest box around a mask; one without an area for an empty mask."""
    from faster_coco_eval.core import mask as coco

    x, y, width, height = (float(value) for value in coco.toBbox(_encoded(mask)))
    return x, y, width, height


def pixels_of(mask: Mask) -> npt.NDArray[np.bool_]:
    """Return a mask as a boolean array (height, width)."""
    from faster_coco_eval.core import mask as coco

    return np.asarray(coco.decode(_encoded(mask)), dtype=np.bool_)


def _require_drawable(height: int, width: int) -> None:
    if height * width > MAX_MASK_PIXELS:
        raise ValueError(f"it is of {height} x {width} pixels, the limit is {MAX_MASK_PIXELS:,}")


def _mask(encoded: Mapping[str, Any], height: int, width: int) -> Mask:
    # Not validated here: the runs are not from a file, and an object that gets them is validated.
    return Mask.model_construct(size=(height, width), counts=encoded["counts"].decode("ascii"))


def _encoded(mask: Mask) -> dict[str, Any]:
    return {"size": list(mask.size), "counts": mask.counts.encode("ascii")}
