"""Detections and true objects as flat columns, and the overlaps of their pairs.

They are boxes, unless the overlaps of masks are given.

Boxes arrive as float32 and are converted to float64 once, here. The conversion is exact, so that
widths, areas and overlaps are those that COCO's tools compute from the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError

__all__ = [
    "COCO_DETECTIONS",
    "CROWD",
    "OBJECT",
    "DetectionSet",
    "MaskOverlaps",
    "Pairs",
    "detection_set",
    "overlapping_pairs",
]

OBJECT = 1
"""Kind of a row of the targets that is one object."""
CROWD = 2
"""Kind of a row of the targets that stands for many objects which are not told apart."""
COCO_DETECTIONS = 100
"""Number of detections of an image and label that COCO counts."""

_MAX_PAIRS_AT_ONCE = 250_000

Bools = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of a detection and a true object of one image, sorted by detection, then by object.

    Attributes:
        detection: Position of the detection, int64 (P,).
        truth: Position of the true object, int64 (P,).
        overlap: Their IoU; for a crowd the share of the detection that lies in it, float64 (P,).
    """

    detection: Integers
    truth: Integers
    overlap: Doubles

    def __getitem__(self, chosen: npt.NDArray[Any]) -> Pairs:
        """Return some of the pairs, chosen by their positions or by a mask."""
        return Pairs(self.detection[chosen], self.truth[chosen], self.overlap[chosen])


@dataclass(frozen=True, slots=True)
class MaskOverlaps:
    """The masks of a set of detections, as far as metrics need them.

    Attributes:
        area: Pixels of each detection, float64 (D,).
        true_area: Pixels of each true object, float64 (T,).
        pairs: The pairs of a detection and a true object that share pixels.
    """

    area: Doubles
    true_area: Doubles
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class DetectionSet:
    """The detections and the true objects of N images, image by image and in their order.

    Attributes:
        size: Width and height of each image in pixels, int64 (N, 2).
        num_labels: Number of labels.
        image: Image of each detection, int64 (D,).
        label: Label index of each detection, int64 (D,).
        score: Score of each detection, not 0, float32 (D,).
        box: Its x1, y1, x2, y2 in pixels, float64 (D, 4).
        true_image: Image of each true object, int64 (T,).
        true_label: Label index of each true object, int64 (T,).
        true_box: Its x1, y1, x2, y2 in pixels, float64 (T, 4).
        crowd: Whether it is a crowd, bool (T,).
        masks: Has masks compared instead of boxes.
    """

    size: Integers
    num_labels: int
    image: Integers
    label: Integers
    score: npt.NDArray[np.float32]
    box: Doubles
    true_image: Integers
    true_label: Integers
    true_box: Doubles
    crowd: Bools
    masks: MaskOverlaps | None = None

    @property
    def area(self) -> Doubles:
        """Pixels of each detection, float64 (D,)."""
        return _areas(self.box) if self.masks is None else self.masks.area

    @property
    def true_area(self) -> Doubles:
        """Pixels of each true object, float64 (T,)."""
        return _areas(self.true_box) if self.masks is None else self.masks.true_area

    @property
    def num_images(self) -> int:
        """Number of images N."""
        return len(self.size)

    @property
    def max_detections(self) -> int:
        """Number of detections of an image and label that count, those with the highest scores.

        It is 100, as in COCO, whose images have fewer objects of a label; or as many as an image of
        these data has.
        """
        own = ~self.crowd
        counts = np.bincount(self.true_image[own] * self.num_labels + self.true_label[own])
        return max(COCO_DETECTIONS, int(counts.max(initial=0)))

    @property
    def num_true(self) -> Integers:
        """Number of the objects of each label that are no crowds, int64 (num_labels,)."""
        return np.bincount(self.true_label[~self.crowd], minlength=self.num_labels)

    def ranked(self) -> list[Integers]:
        """Return the detections of each label by falling score; equal scores keep their order."""
        order = np.lexsort((-self.score, self.label))
        return np.split(order, np.searchsorted(self.label[order], np.arange(1, self.num_labels)))


def detection_set(outputs: Floats, targets: Floats, num_labels: int) -> DetectionSet:
    """Read detections and true objects from padded arrays.

    Args:
        outputs: Rows of x1, y1, x2, y2, score and label index, float32 (N, M, 6); a score of 0
            marks an empty row.
        targets: For each image a row that starts with its width and height, then rows of x1, y1,
            x2, y2, label index and kind, float32 (N, 1 + K, 6). Kinds are `OBJECT`, `CROWD` and 0
            for an empty row. Boxes of both are in pixels of the original image.
        num_labels: Number of labels.

    Raises:
        InputError: If the arrays do not belong together, or a row that is not empty is invalid.
    """
    if outputs.shape[2:] != (6,) or targets.shape[2:] != (6,) or len(outputs) != len(targets):
        raise InputError(
            f"Detections {outputs.shape} and targets {targets.shape} do not belong together; pass "
            "arrays (N, M, 6) and (N, 1 + K, 6) of the same N images."
        )
    image, slot = np.nonzero(outputs[:, :, 4] != 0)
    rows = outputs[image, slot]
    true_image, true_slot = np.nonzero(targets[:, 1:, 5])
    true_rows = targets[true_image, true_slot + 1]
    return DetectionSet(
        size=targets[:, 0, :2].astype(np.int64),
        num_labels=num_labels,
        image=image,
        label=_labels("detection", image, rows, 5, num_labels),
        score=rows[:, 4].astype(np.float32),
        box=rows[:, :4].astype(np.float64),
        true_image=true_image,
        true_label=_labels("true object", true_image, true_rows, 4, num_labels),
        true_box=true_rows[:, :4].astype(np.float64),
        crowd=true_rows[:, 5] == CROWD,
    )


def overlapping_pairs(data: DetectionSet, min_overlap: float, *, same_label: bool) -> Pairs:
    """Return the pairs of a detection and a true object of its image that overlap.

    Args:
        data: The detections and the true objects.
        min_overlap: Overlap that a pair has at least, above 0.
        same_label: Whether to return only pairs of one label.
    """
    if data.masks is not None:
        pairs = data.masks.pairs
        kept = pairs.overlap >= min_overlap
        if same_label:
            kept &= data.label[pairs.detection] == data.true_label[pairs.truth]
        return pairs[kept]
    keys, true_keys = data.image, data.true_image
    if same_label:
        keys = keys * data.num_labels + data.label
        true_keys = true_keys * data.num_labels + data.true_label
    order = np.argsort(true_keys, kind="stable")
    starts = np.searchsorted(true_keys[order], keys)
    counts = np.searchsorted(true_keys[order], keys, side="right") - starts
    found = [_no_pairs()]
    for some in _batches(counts):
        detection = np.repeat(some, counts[some])
        within = np.arange(len(detection)) - np.repeat(
            np.cumsum(counts[some]) - counts[some], counts[some]
        )
        truth = order[starts[detection] + within]
        overlap = _overlaps(data.box[detection], data.true_box[truth], data.crowd[truth])
        found.append(Pairs(detection, truth, overlap)[overlap >= min_overlap])
    return Pairs(
        np.concatenate([one.detection for one in found]),
        np.concatenate([one.truth for one in found]),
        np.concatenate([one.overlap for one in found]),
    )


def _batches(counts: Integers) -> Iterator[Integers]:
    """Yield detections that have pairs, so many at once that their pairs need little memory."""
    detections = np.flatnonzero(counts)
    batch = np.cumsum(counts[detections]) // _MAX_PAIRS_AT_ONCE
    yield from np.split(detections, np.flatnonzero(np.diff(batch)) + 1)


def _overlaps(boxes: Doubles, true_boxes: Doubles, crowd: Bools) -> Doubles:
    """Return the overlap of each pair, as COCO's tools compute it, float64 (P,)."""
    upper_left = np.maximum(boxes[:, :2], true_boxes[:, :2])
    sides = np.minimum(boxes[:, 2:], true_boxes[:, 2:]) - upper_left
    shared = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    area, true_area = _areas(boxes), _areas(true_boxes)
    whole = np.where(crowd, area, area + true_area - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)


def _areas(boxes: Doubles) -> Doubles:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _no_pairs() -> Pairs:
    none = np.empty(0, np.int64)
    return Pairs(none, none, np.empty(0))


def _labels(what: str, image: Integers, rows: Floats, column: int, num_labels: int) -> Integers:
    """Return the label index of each row.

    Raises:
        InputError: If a row has numbers that are not finite, or a label that there is not.
    """
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise InputError(
            f"A {what} of image {image[bad][0]} has numbers that are not finite; check whether the "
            "network's training diverged."
        )
    label = rows[:, column].astype(np.int64)
    bad = (label < 0) | (label >= num_labels)
    if bad.any():
        raise InputError(
            f"A {what} of image {image[bad][0]} has label index {label[bad][0]}, and there are "
            f"{num_labels} labels; use the labels that the model was trained with."
        )
    return label
