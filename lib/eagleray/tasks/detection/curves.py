"""Metrics of detections along the threshold of the score: PASCAL VOC's AP, F1, and counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eagleray.tasks.detection.boxes import Bools, DetectionSet, Doubles
from eagleray.tasks.detection.matching import match_as_coco, match_as_voc
from eagleray.tasks.thresholds import last_highest, threshold_between

__all__ = ["BestF1", "best_f1", "count_error", "voc_metrics"]

_IOU = 0.5
_RECALLS = np.arange(11) / 10


def voc_metrics(data: DetectionSet, labels: Sequence[str]) -> dict[str, float]:
    """Return PASCAL VOC's average precisions at an IoU of 0.5.

    `voc_ap_11[LABEL]` is that of VOC 2007, the mean of the highest precisions from 11 recalls on;
    `voc_ap[LABEL]` is that of later years, the area under these precisions. `voc_map_11` and
    `voc_map` are their means over labels with true objects; other labels are left out. Boxes have
    edges without width here, while VOC's own program counts pixels, both edges included.

    Args:
        data: The detections and the true objects.
        labels: Names of the labels.
    """
    matches = match_as_voc(data, _IOU)
    hit, ignored = matches.hit[0], matches.ignored[0]
    found: dict[str, float] = {}
    areas = {"voc_map": "voc_ap", "voc_map_11": "voc_ap_11"}
    for label, ranked, num_true in zip(labels, data.ranked(), data.num_true.tolist(), strict=True):
        if not num_true:
            continue
        precision, recall = _curve(hit[ranked][~ignored[ranked]], num_true)
        found[f"voc_ap[{label}]"] = float((np.diff(recall, prepend=0.0) * precision).sum())
        places = np.searchsorted(recall, _RECALLS)
        found[f"voc_ap_11[{label}]"] = float(np.append(precision, 0.0)[places].mean())
    for mean, each in areas.items():
        values = [value for name, value in found.items() if name.startswith(f"{each}[")]
        if values:
            found[mean] = float(np.mean(values))
    return found


@dataclass(frozen=True, slots=True)
class BestF1:
    """The best F1 of a label at an IoU of 0.5, over the thresholds of the score.

    Attributes:
        f1: Harmonic mean of precision and recall.
        precision: Share of the detections from the threshold on that are hits.
        recall: Share of the true objects that these hit.
        threshold: The threshold, midway between the lowest score that is kept and the next one;
            None if no detection is a hit.
    """

    f1: float = 0.0
    precision: float = 0.0
    recall: float = 0.0
    threshold: float | None = None


def best_f1(data: DetectionSet, labels: Sequence[str]) -> dict[str, BestF1]:
    """Return the best F1 of each label with true objects; of equal ones the highest threshold.

    Args:
        data: The detections and the true objects.
        labels: Names of the labels.
    """
    matches = match_as_coco(data, np.array([_IOU]))
    hit, counted = matches.hit[0], ~matches.ignored[0]
    found = {}
    for index, (label, num_true) in enumerate(zip(labels, data.num_true.tolist(), strict=True)):
        own = counted & (data.label == index)
        if num_true:
            found[label] = _best_f1(data.score[own], hit[own], num_true)
    return found


def count_error(data: DetectionSet, thresholds: Sequence[float | None]) -> float | None:
    """Return how far counts of objects are off, the mean over images and labels.

    A count is the number of detections whose score reaches the label's threshold, without those in
    crowds. Labels without true objects are left out; None if there are no others.

    Args:
        data: The detections and the true objects.
        thresholds: Threshold of each label; None counts no detection.
    """
    counted = ~match_as_coco(data, np.array([_IOU])).ignored[0]
    errors = []
    for index, threshold in enumerate(thresholds):
        own = (data.true_label == index) & ~data.crowd
        if not own.any():
            continue
        kept = counted & (data.label == index)
        kept &= data.score >= (np.inf if threshold is None else threshold)
        predicted = np.bincount(data.image[kept], minlength=data.num_images)
        true = np.bincount(data.true_image[own], minlength=data.num_images)
        errors.append(np.abs(predicted - true).mean())
    return float(np.mean(errors)) if errors else None


def _curve(hit: Bools, num_true: int) -> tuple[Doubles, Doubles]:
    """Return the highest precision from each hit on, and the recall at each hit (H,)."""
    places = np.flatnonzero(hit)
    found = np.arange(1, len(places) + 1)
    precision = found / (places + 1)
    return np.maximum.accumulate(precision[::-1])[::-1], found / num_true


def _best_f1(scores: npt.NDArray[np.float32], hit: Bools, num_true: int) -> BestF1:
    if not hit.any():
        return BestF1()
    values, places = np.unique(scores, return_inverse=True)
    kept = np.cumsum(np.bincount(places)[::-1])[::-1]
    hits = np.cumsum(np.bincount(places, hit)[::-1])[::-1]
    f1 = 2 * hits / (kept + num_true)
    best = last_highest(f1)
    return BestF1(
        f1=float(f1[best]),
        precision=float(hits[best] / kept[best]),
        recall=float(hits[best] / num_true),
        threshold=threshold_between(values, best),
    )
