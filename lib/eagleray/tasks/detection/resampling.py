"""COCO's average precision of many resamples of the same images at once.

Detections are matched and sorted once, because weights of images change no match. A resample then
costs cumulative sums over the hits; tests hold the result to pycocotools'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eagleray.tasks.detection.boxes import DetectionSet, Doubles, Floats, Integers, detection_set
from eagleray.tasks.detection.matching import COCO_IOUS, Matches, match_as_coco

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["average_precision_of_resamples", "resampled_average_precision"]

_RECALLS = np.linspace(0.0, 1.0, 101)
"""The recalls that COCO interpolates precision at."""
_TINY = np.spacing(1.0)
_MAX_CELLS = 2_000_000
"""Largest number of cells of an array: some eight of them are alive at a time, 16 MB each."""


@dataclass(frozen=True, slots=True)
class _HitsOfIou:
    """The hits of one label at one IoU, by falling score.

    Attributes:
        rows: Positions of the hits among the label's hits at any IoU, int64 (H,).
        image: Image of each hit, int64 (H,).
        ignored: Number of ignored detections of each image, in the segments of
            `_LabelHits.detections`, sparse (U, N); None if none is ignored.
    """

    rows: Integers
    image: Integers
    ignored: csr_array | None


@dataclass(frozen=True, slots=True)
class _LabelHits:
    """The true objects and the detections of one label, without any weights.

    Attributes:
        true: Number of true objects of each image, float64 (N,).
        detections: Number of detections of each image in each segment, sparse (U, N). Each of the
            U hits at any IoU ends a segment of the detections by falling score.
        by_iou: The hits at each IoU.
    """

    true: Doubles
    detections: csr_array
    by_iou: tuple[_HitsOfIou, ...]


def resampled_average_precision(
    outputs: Floats, targets: Floats, num_labels: int
) -> Callable[[Floats], dict[str, Floats]]:
    """Return a function from weights of the images to `map` and `map_50` of each resample.

    With a weight of 1 for each image they are COCO's: 101 points of recall, 100 detections of an
    image and label, objects of all sizes, crowds ignored. The function takes weights (R, N), how
    often each image counts, and returns float64 (R,). A label without true objects in a resample is
    in no mean of it; a resample without any has NaN.

    An image with a weight of k counts as k copies of it; each of its detections is ranked as k
    detections in a row.

    Args:
        outputs: Detections (N, M, 6), as for `detection_set`.
        targets: True objects (N, 1 + K, 6), as for `detection_set`.
        num_labels: Number of labels.

    Raises:
        InputError: As `detection_set`.
    """
    return average_precision_of_resamples(detection_set(outputs, targets, num_labels))


def average_precision_of_resamples(data: DetectionSet) -> Callable[[Floats], dict[str, Floats]]:
    """Return what `resampled_average_precision` does, for a set of detections.

    Args:
        data: The detections and the true objects.
    """
    matches = match_as_coco(data, COCO_IOUS)
    ranked = data.ranked()
    labels = [
        _label_hits(data, matches, label, ranked[label])
        for label in np.flatnonzero(data.num_true).tolist()
    ]
    largest = max([data.num_images, *(one.detections.shape[0] for one in labels)])
    at_once = max(1, _MAX_CELLS // largest)

    def metrics(weights: Floats) -> dict[str, Floats]:
        chunks = [
            _average_precisions(labels, weights[start : start + at_once].T)
            for start in range(0, len(weights), at_once)
        ]
        values = np.concatenate([np.empty((2, 0)), *chunks], axis=1)
        return {"map": values[0], "map_50": values[1]}

    return metrics


def _label_hits(data: DetectionSet, matches: Matches, label: int, ranked: Integers) -> _LabelHits:
    hit, ignored, image = matches.hit[:, ranked], matches.ignored[:, ranked], data.image[ranked]
    places = np.flatnonzero(hit.any(axis=0))
    segment = np.searchsorted(places, np.arange(len(ranked)))
    shape = (len(places), data.num_images)
    by_iou = tuple(
        _HitsOfIou(
            rows=np.flatnonzero(own_hit[places]),
            image=image[own_hit],
            ignored=_counts(segment[out], image[out], shape) if out.any() else None,
        )
        for own_hit, out in zip(hit, ignored, strict=True)
    )
    own = (data.true_label == label) & ~data.crowd
    true = np.bincount(data.true_image[own], minlength=data.num_images).astype(np.float64)
    return _LabelHits(true, _counts(segment, image, shape), by_iou)


def _counts(segment: Integers, image: Integers, shape: tuple[int, int]) -> csr_array:
    """Count the detections of each segment and image; those after the last hit are left out."""
    from scipy.sparse import coo_array

    before = segment < shape[0]
    cells = (segment[before], image[before])
    return coo_array((np.ones(before.sum()), cells), shape=shape).tocsr()


def _average_precisions(labels: list[_LabelHits], weights: npt.NDArray[Any]) -> Doubles:
    """Return `map` and `map_50` (2, R) for weights (N, R)."""
    weights = np.ascontiguousarray(weights, np.float64)
    total = np.zeros((2, weights.shape[1]))
    seen = np.zeros(weights.shape[1])
    for label in labels:
        true = label.true @ weights
        passed = np.cumsum(label.detections @ weights, axis=0)
        areas = [_area(hits, passed, true, weights) for hits in label.by_iou]
        total += np.where(true > 0, [np.mean(areas, axis=0), areas[0]], 0.0)
        seen += true > 0
    return np.asarray(np.divide(total, seen, out=np.full_like(total, np.nan), where=seen > 0))


def _area(hits: _HitsOfIou, passed: Doubles, true: Doubles, weights: Doubles) -> Doubles:
    """Return the average precision of one label at one IoU (R,).

    Args:
        hits: The hits.
        passed: Weight of the detections up to each hit at any IoU (U, R).
        true: Weight of the true objects (R,).
        weights: How often each image counts (N, R).
    """
    if not len(hits.rows):
        return np.zeros(len(true))
    counted = passed[hits.rows]
    if hits.ignored is not None:
        counted -= np.cumsum(hits.ignored @ weights, axis=0)[hits.rows]
    found = np.cumsum(weights[hits.image], axis=0)
    precision = found / (counted + _TINY)
    recall = found / np.where(true > 0, true, 1.0)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    # Precision rises at hits only, so each point of recall takes that of the hit which reaches it.
    points = np.diff(_num_reached(recall), axis=0, prepend=0)
    return np.asarray((best * points).sum(axis=0) / len(_RECALLS))


def _num_reached(recall: Doubles) -> Integers:
    """Count the points of recall up to each recall, faster than a binary search does."""
    last = np.minimum(recall * (len(_RECALLS) - 1), len(_RECALLS) - 1).astype(np.int64)
    # The product is rounded, so that the point may be the next one or the one before.
    last -= _RECALLS[last] > recall
    last += np.append(_RECALLS, np.inf)[last + 1] <= recall
    return np.asarray(last + 1)
