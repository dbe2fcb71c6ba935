"""The kinds of errors of detections, as TIDE tells them apart.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", 2020. As in their
program, a detection has the first kind of these that applies: localization, classification,
duplicate, background, both.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from eagleray.tasks.detection.boxes import (
    Bools,
    DetectionSet,
    Doubles,
    Integers,
    Pairs,
    overlapping_pairs,
)
from eagleray.tasks.detection.matching import match_as_coco

__all__ = ["DetectionErrors", "ErrorKind", "detection_errors"]

_FOREGROUND, _BACKGROUND = 0.5, 0.1


class ErrorKind(IntEnum):
    """What a detection is, by its IoU with true objects.

    Attributes:
        IGNORED: It lies in a crowd, is beyond the 100 detections of its image and label that
            count, or does not reach the threshold of its label.
        HIT: It is right.
        CLASSIFICATION: It has an IoU of at least 0.5 with an object of another label.
        LOCALIZATION: It has an IoU between 0.1 and 0.5 with an object of its label.
        BOTH: It has an IoU between 0.1 and 0.5 with an object of another label only.
        DUPLICATE: It has an IoU of at least 0.5 with an object of its label that another
            detection has hit.
        BACKGROUND: It has an IoU of at most 0.1 with every object.
    """

    IGNORED = -1
    HIT = 0
    CLASSIFICATION = 1
    LOCALIZATION = 2
    BOTH = 3
    DUPLICATE = 4
    BACKGROUND = 5


@dataclass(frozen=True, slots=True)
class DetectionErrors:
    """What each detection is, and which true objects are missed.

    Attributes:
        kind: An `ErrorKind` for each detection, int8 (D,).
        truth: Position of the true object that a hit, a classification, a localization or a
            duplicate is about, or -1, int64 (D,).
        missed: Whether each true object is missed: no detection hits it, and none would if its
            label or its place were right, bool (T,).
    """

    kind: npt.NDArray[np.int8]
    truth: Integers
    missed: Bools

    @property
    def counts(self) -> dict[str, int]:
        """Number of errors by kind: `classification`, …, `background`, and `missed`."""
        kinds = [kind for kind in ErrorKind if kind > ErrorKind.HIT]
        counts = {kind.name.lower(): int((self.kind == kind).sum()) for kind in kinds}
        return {**counts, "missed": int(self.missed.sum())}

    def confusion(self, data: DetectionSet) -> Integers:
        """Return how often an object of each label (rows) was given each label (columns).

        Hits are on the diagonal, errors of classification beside it, int64 (num_labels,
        num_labels).
        """
        found = np.isin(self.kind, (ErrorKind.HIT, ErrorKind.CLASSIFICATION))
        cells = data.true_label[self.truth[found]] * data.num_labels + data.label[found]
        counts = np.bincount(cells, minlength=data.num_labels**2)
        return counts.reshape(data.num_labels, data.num_labels)


def detection_errors(data: DetectionSet, thresholds: Doubles | None = None) -> DetectionErrors:
    """Find out what each detection is, and which true objects are missed.

    Args:
        data: The detections and the true objects.
        thresholds: Score from which on a detection of each label counts, float64 (num_labels,);
            None counts all of them, as TIDE does, most of them errors with a low score.
    """
    matches = match_as_coco(data, np.array([_FOREGROUND]))
    counted = ~matches.ignored[0]
    if thresholds is not None:
        counted &= data.score >= thresholds[data.label]
    hit = matches.hit[0] & counted
    used = np.zeros(len(data.crowd), bool)
    used[matches.truth[0, hit]] = True
    pairs = overlapping_pairs(data, _BACKGROUND, same_label=False)
    pairs = pairs[~data.crowd[pairs.truth] & (counted & ~hit)[pairs.detection]]
    same = data.label[pairs.detection] == data.true_label[pairs.truth]
    own, own_truth = _best(pairs[same], len(hit))
    other, other_truth = _best(pairs[~same], len(hit))
    hit_before, hit_truth = _best(pairs[same & used[pairs.truth]], len(hit))
    conditions = {
        ErrorKind.IGNORED: ~counted,
        ErrorKind.HIT: hit,
        ErrorKind.LOCALIZATION: (own >= _BACKGROUND) & (own <= _FOREGROUND),
        ErrorKind.CLASSIFICATION: other >= _FOREGROUND,
        ErrorKind.DUPLICATE: hit_before >= _FOREGROUND,
        ErrorKind.BACKGROUND: np.maximum(own, other) <= _BACKGROUND,
    }
    kind = np.select(list(conditions.values()), list(conditions), ErrorKind.BOTH).astype(np.int8)
    truths = {
        ErrorKind.HIT: matches.truth[0],
        ErrorKind.LOCALIZATION: own_truth,
        ErrorKind.CLASSIFICATION: other_truth,
        ErrorKind.DUPLICATE: hit_truth,
    }
    truth = np.select([kind == one for one in truths], list(truths.values()), -1)
    found = used.copy()
    found[truth[(kind == ErrorKind.LOCALIZATION) | (kind == ErrorKind.CLASSIFICATION)]] = True
    return DetectionErrors(kind, truth, ~found & ~data.crowd)


def _best(pairs: Pairs, num_detections: int) -> tuple[Doubles, Integers]:
    """Return the largest overlap of each detection, 0 for none, and with which object."""
    overlap, truth = np.zeros(num_detections), np.full(num_detections, -1)
    # The last writer of a place wins: the pair with the largest overlap, of equal ones the first.
    order = np.lexsort((-pairs.truth, pairs.overlap))
    overlap[pairs.detection[order]] = pairs.overlap[order]
    truth[pairs.detection[order]] = pairs.truth[order]
    return overlap, truth
