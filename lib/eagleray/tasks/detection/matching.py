"""Matches detections with true objects of their label, as COCO and as PASCAL VOC do."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.tasks.detection.boxes import (
    Bools,
    DetectionSet,
    Doubles,
    Integers,
    overlapping_pairs,
)

__all__ = [
    "COCO_IOUS",
    "Matches",
    "match_as_coco",
    "match_as_voc",
    "ranks_among",
]

COCO_IOUS = np.linspace(0.5, 0.95, 10)
"""The IoUs that COCO averages over."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What each detection is counted as, for each of L IoUs.

    A detection that is neither a hit nor ignored is a false positive.

    Attributes:
        truth: Position of the true object or crowd that it matches, or -1, int64 (L, D).
        hit: Whether it matches an object that is no crowd, bool (L, D).
        ignored: Whether it does not count: it lies in a crowd, or is beyond the number of
            detections that count, bool (L, D).
    """

    truth: Integers
    hit: Bools
    ignored: Bools


def match_as_coco(data: DetectionSet, ious: Doubles) -> Matches:
    """Match detections by falling score, each with the free object that it overlaps most.

    Of objects with the same overlap the last one is taken, as by COCO's tools. Detections with the
    same score are matched in their order.

    Args:
        data: The detections and the true objects.
        ious: Smallest overlaps of a match, float64 (L,).
    """
    rank, most = _ranks(data), data.max_detections
    pairs = overlapping_pairs(data, float(ious.min()), same_label=True)
    pairs = pairs[rank[pairs.detection] < most]
    crowd = data.crowd[pairs.truth]
    order = np.lexsort(
        (-pairs.truth, -pairs.overlap, crowd, pairs.detection, rank[pairs.detection])
    )
    pairs = pairs[order]
    truth = np.full((len(ious), len(data.score)), -1)
    taken = np.zeros((len(ious), len(data.crowd)), bool)
    # Detections of one rank belong to different images or labels, so they compete for no object.
    bounds = np.searchsorted(rank[pairs.detection], np.arange(most + 1))
    for start, stop in pairwise(bounds):
        some = pairs[np.arange(start, stop)]
        free = ~taken[:, some.truth] | data.crowd[some.truth]
        level, place = np.nonzero(free & (some.overlap >= ious[:, None]))
        first = _is_first(level, some.detection[place])
        level, place = level[first], place[first]
        truth[level, some.detection[place]] = some.truth[place]
        taken[level, some.truth[place]] = True
    in_crowd = _in_crowd(data, truth)
    return Matches(
        truth=truth,
        hit=(truth >= 0) & ~in_crowd,
        ignored=in_crowd | (rank >= most),
    )


def match_as_voc(data: DetectionSet, iou: float = 0.5) -> Matches:
    """Match each detection with the object that it overlaps most, or with none.

    The detection with the highest score takes the object; others that overlap the same object
    most are false positives. Crowds are ignored as COCO does it.

    Args:
        data: The detections and the true objects.
        iou: Smallest overlap of a match.
    """
    pairs = overlapping_pairs(data, iou, same_label=True)
    pairs = pairs[np.lexsort((-pairs.overlap, data.crowd[pairs.truth], pairs.detection))]
    pairs = pairs[_is_first(pairs.detection)]
    truth = np.full(len(data.score), -1)
    truth[pairs.detection] = pairs.truth
    in_crowd = _in_crowd(data, truth)
    rivals = np.flatnonzero((truth >= 0) & ~in_crowd)
    rivals = rivals[np.lexsort((-data.score[rivals], truth[rivals]))]
    hit = np.zeros(len(truth), bool)
    hit[rivals[_is_first(truth[rivals])]] = True
    truth[~hit & ~in_crowd] = -1
    return Matches(truth[None], hit[None], in_crowd[None])


def _ranks(data: DetectionSet) -> Integers:
    """Return the place of each detection among those of its image and label, from 0, (D,)."""
    return ranks_among(data.image * data.num_labels + data.label, -data.score)


def ranks_among(keys: Integers, values: npt.NDArray[Any]) -> Integers:
    """Return the place of each item among those with its key, by rising value, from 0, (D,).

    Equal values keep their order.

    Args:
        keys: Key of each item (D,).
        values: What the items are ordered by (D,).
    """
    order = np.lexsort((values, keys))
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.searchsorted(keys[order], keys[order])
    return ranks


def _is_first(*columns: Integers) -> Bools:
    """Return whether each row differs from the one before, in any of the columns (P,)."""
    first = np.ones(len(columns[0]), bool)
    first[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return first


def _in_crowd(data: DetectionSet, truth: Integers) -> Bools:
    if not len(data.crowd):
        return np.zeros(truth.shape, bool)
    return np.asarray((truth >= 0) & data.crowd[truth])
