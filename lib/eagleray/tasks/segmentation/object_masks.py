"""Enlarges found objects to the upright original image, and encodes the pixels of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from eagleray.imaging.geometry import Frame
from eagleray.tasks.run_lengths import encode_runs, inside_runs, runs_of_numbers
from eagleray.tasks.segmentation.class_maps import ClassMap, likeliest_classes
from eagleray.tasks.segmentation.grouping import FoundObjects

__all__ = [
    "EncodedMask",
    "OriginalObjects",
    "encode_masks",
    "numbers_of",
    "objects_in_original",
    "rle_of",
]

Numbers = npt.NDArray[np.uint16]

_MAX_STRIP_PIXELS = 2**22  # that are enlarged at a time


@dataclass(frozen=True, slots=True)
class OriginalObjects:
    """What the pixels of an upright original image are.

    Attributes:
        classes: Index of the likeliest label of each pixel, uint8 (height, width).
        numbers: Number of the object of each pixel, from 1; 0 for none, uint16 (height, width).
    """

    classes: ClassMap
    numbers: Numbers


@dataclass(frozen=True, slots=True)
class EncodedMask:
    """The pixels of one object.

    Attributes:
        counts: COCO's compressed run lengths.
        area: Number of its pixels.
        box: Left edge, upper edge, width and height of the smallest box around them, in pixels.
    """

    counts: str
    area: int
    box: tuple[int, int, int, int]


def objects_in_original(
    probabilities: npt.NDArray[np.float32],
    found: FoundObjects,
    is_thing: npt.NDArray[np.bool_],
    frame: Frame,
) -> OriginalObjects:
    """Enlarge the objects of one image.

    Where labels meet, edges follow the probabilities, which are enlarged by bilinear interpolation;
    where two objects meet, each pixel belongs to the object of the nearest one. An image takes
    three bytes for each pixel, however many labels there are.

    Args:
        probabilities: float32 array (C, H, W) of the network's input.
        found: The objects in the part of the input that has the image, (h, w).
        is_thing: Whether the objects of each label are told apart, bool (C,).
        frame: Maps places in the input to the original.
    """
    classes = likeliest_classes(probabilities, frame)
    near = _spread(found.numbers)
    rows, columns = near.shape
    down = ((np.arange(frame.height) + 0.5) * (rows / frame.height)).astype(np.int64)
    across = ((np.arange(frame.width) + 0.5) * (columns / frame.width)).astype(np.int64)
    wide = near[:, across.clip(max=columns - 1)]
    numbers = np.empty(classes.shape, np.uint16)
    count = max(1, _MAX_STRIP_PIXELS // frame.width)
    for start in range(0, frame.height, count):
        strip = slice(start, start + count)
        numbers[strip] = wide[down[strip].clip(max=rows - 1)]
        numbers[strip][~is_thing[classes[strip]]] = 0
    return OriginalObjects(classes, numbers)


def _spread(numbers: npt.NDArray[np.int32]) -> Numbers:
    """Give every pixel the number of the nearest object, for edges that lie between pixels."""
    if not numbers.any():
        return numbers.astype(np.uint16)
    _, nearest = cv2.distanceTransformWithLabels(
        (numbers == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(nearest.max()) + 1, np.uint16)
    inside = numbers > 0
    of_label[nearest[inside]] = numbers[inside]
    return of_label[nearest]


def encode_masks(numbers: npt.NDArray[np.integer[Any]]) -> dict[int, EncodedMask]:
    """Return the mask of each object by its number; objects without pixels are left out.

    Args:
        numbers: Number of the object of each pixel, from 1; 0 for none (height, width).
    """
    from faster_coco_eval.core import mask as coco

    height, width = numbers.shape
    runs = runs_of_numbers(numbers)
    runs.pop(0, None)
    counts = {number: encode_runs(own, height, width) for number, own in runs.items()}
    encoded = [rle_of(text, height, width) for text in counts.values()]
    boxes = coco.toBbox(encoded).tolist() if encoded else []
    found = {}
    for (number, text), box in zip(counts.items(), boxes, strict=True):
        x, y, wide, high = map(int, box)
        found[number] = EncodedMask(text, int(runs[number][1::2].sum()), (x, y, wide, high))
    return found


def rle_of(counts: str, height: int, width: int) -> Mapping[str, Any]:
    """Return a mask as COCO's tools take it."""
    return {"size": [height, width], "counts": counts.encode()}


def numbers_of(masks: Sequence[str], height: int, width: int) -> Numbers:
    """Return the number of the mask of each pixel, from 1; 0 for none, uint16 (height, width).

    Of masks that share a pixel the first one has it.

    Args:
        masks: COCO's compressed run lengths of each mask.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    flat = np.zeros(height * width, np.uint16)
    for number in range(len(masks), 0, -1):
        flat[inside_runs(masks[number - 1], height, width)] = number
    return np.ascontiguousarray(flat.reshape(width, height).T)
