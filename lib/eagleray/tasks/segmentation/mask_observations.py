"""What metrics need of the masks of an image, as a few numbers for each detection.

A row has `x1, y1, x2, y2, score, label` as in `objects`, the pixels of the mask, then of the true
objects that the mask shares pixels with those that it overlaps most: their places among the true
objects, from 1, and the numbers of pixels that it shares with each of them. Rows of targets have
the pixels of the true mask after their six numbers. So a mask takes 60 bytes, and overlaps are
computed from whole numbers, as COCO's tools do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.tasks.detection.boxes import (
    CROWD,
    DetectionSet,
    MaskOverlaps,
    Pairs,
    detection_set,
)
from eagleray.tasks.detection.objects import ROW
from eagleray.tasks.segmentation.object_masks import rle_of

__all__ = ["OBSERVED", "TRUE_ROW", "mask_detection_set", "observe_masks", "shared_pixels"]

_PAIRS = 4  # true objects of a row
_AREA, _PLACES, _SHARED = ROW, ROW + 1, ROW + 1 + _PAIRS

OBSERVED = ROW + 1 + 2 * _PAIRS
"""Numbers of a row of an observation."""
TRUE_ROW = ROW + 1
"""Numbers of a row of the targets."""

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def shared_pixels(masks: Sequence[str], truths: Sequence[str], height: int, width: int) -> Integers:
    """Return the number of pixels that each of M masks shares with each of K others (M, K).

    Args:
        masks: COCO's compressed run lengths.
        truths: The others.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    from faster_coco_eval.core import mask as coco

    if not masks or not truths:
        return np.zeros((len(masks), len(truths)), np.int64)
    sides = [[rle_of(counts, height, width) for counts in side] for side in (masks, truths)]
    shares = np.asarray(coco.iou(*sides, [1] * len(truths)))  # of the first mask, as for crowds
    pixels: Integers = np.rint(shares * np.asarray(coco.area(sides[0]))[:, None]).astype(np.int64)
    return pixels


def observe_masks(
    detections: Floats, areas: Integers, shared: Integers, truths: npt.NDArray[Any]
) -> Floats:
    """Return the observation of an image, float32 (M, OBSERVED).

    Args:
        detections: Detections (M, 6), the empty rows last.
        areas: Pixels of the masks of the D detections that are no empty rows (D,).
        shared: Pixels that each of these shares with each true object (D, K).
        truths: Rows of the true objects (K, TRUE_ROW).
    """
    rows = np.zeros((len(detections), OBSERVED), np.float32)
    rows[:, :ROW] = detections
    rows[: len(areas), _AREA] = areas
    overlap = _overlap(shared, areas[:, None], truths[:, _AREA], truths[:, 5] == CROWD)
    best = np.argsort(-overlap, axis=1, kind="stable")[:, :_PAIRS]
    pixels = np.take_along_axis(shared, best, axis=1)
    places = slice(_PLACES, _PLACES + best.shape[1])
    rows[: len(areas), places] = np.where(pixels > 0, best + 1, 0)
    rows[: len(areas), _SHARED : _SHARED + best.shape[1]] = pixels
    return rows


def mask_detection_set(
    outputs: npt.NDArray[Any], targets: npt.NDArray[Any], num_labels: int
) -> DetectionSet:
    """Read detections with masks, and true objects, from padded arrays.

    Args:
        outputs: Observations, float32 (N, M, OBSERVED).
        targets: For each image a row that starts with its width and height, then rows of true
            objects, float32 (N, 1 + K, TRUE_ROW).
        num_labels: Number of labels.

    Raises:
        InputError: As `detection_set`.
    """
    data = detection_set(outputs[:, :, :ROW], targets[:, :, :ROW], num_labels)
    image, slot = np.nonzero(outputs[:, :, 4] != 0)
    rows = outputs[image, slot].astype(np.float64)
    true_image, true_slot = np.nonzero(targets[:, 1:, 5])
    area = rows[:, _AREA]
    true_area = targets[true_image, true_slot + 1, _AREA].astype(np.float64)
    position = np.zeros(targets[:, 1:, 5].shape, np.int64)
    position[true_image, true_slot] = np.arange(len(true_image))
    places = rows[:, _PLACES:_SHARED].astype(np.int64)
    detection, column = np.nonzero(places)
    truth = position[image[detection], places[detection, column] - 1]
    shared = rows[detection, _SHARED + column]
    overlap = _overlap(shared, area[detection], true_area[truth], data.crowd[truth])
    pairs = Pairs(detection, truth, overlap)
    order = np.lexsort((truth, detection))
    return replace(data, masks=MaskOverlaps(area, true_area, pairs[order]))


def _overlap(
    shared: npt.NDArray[Any],
    area: npt.NDArray[Any],
    true_area: npt.NDArray[Any],
    crowd: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """Return the IoU; for a crowd the share of the detection that lies in it."""
    whole = np.where(crowd, area, area + true_area - shared)
    overlap = np.zeros(np.shape(whole))
    np.divide(shared, whole, out=overlap, where=whole > 0)
    return overlap
