"""The metrics of detections by name: COCO's, PASCAL VOC's, F1, and the error of counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eagleray.tasks.detection.boxes import DetectionSet
from eagleray.tasks.detection.coco_metrics import COCO_METRICS, coco_metrics
from eagleray.tasks.detection.curves import best_f1, count_error, voc_metrics

__all__ = ["detection_metric_names", "measure_detections"]

_POOLED = (*COCO_METRICS, "voc_map", "voc_map_11", "f1_macro", "count_error")
_OF_LABELS = ("ap", "ap_50", "voc_ap", "voc_ap_11", "f1")
_AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Areas in pixels of objects of each size; an area at a limit has both sizes, as in COCO."""


def detection_metric_names(
    labels: Sequence[str], data: DetectionSet | None = None
) -> tuple[str, ...]:
    """Return the names of metrics of all labels together, then of each label.

    Args:
        labels: Names of the labels.
        data: Leaves out the metrics that its true objects do not define.
    """
    if data is None:
        return _names(labels, _POOLED)
    held = [label for label, count in zip(labels, data.num_true, strict=True) if count]
    areas = data.true_area[~data.crowd]
    undefined = {
        name
        for size, (low, high) in _AREAS.items()
        for name in (f"map_{size}", f"mar_{size}")
        if not ((areas >= low) & (areas <= high)).any()
    }
    return _names(held, [name for name in _POOLED if held and name not in undefined])


def measure_detections(data: DetectionSet, labels: Sequence[str]) -> dict[str, float]:
    """Compute the metrics that `detection_metric_names` lists, in its order.

    `f1[LABEL]` is at the best threshold of the label (`best_f1`), `f1_macro` the mean of these, and
    `count_error` is at these thresholds.

    There are none if there are no true objects, apart from crowds.

    Args:
        data: The detections and the true objects.
        labels: Names of the labels.
    """
    found = {**coco_metrics(data, labels), **voc_metrics(data, labels)}
    best = best_f1(data, labels)
    found |= {f"f1[{label}]": one.f1 for label, one in best.items()}
    if best:
        found["f1_macro"] = float(np.mean([one.f1 for one in best.values()]))
    thresholds = [best[label].threshold if label in best else None for label in labels]
    error = count_error(data, thresholds)
    if error is not None:
        found["count_error"] = error
    return {name: found[name] for name in detection_metric_names(labels, data)}


def _names(labels: Sequence[str], pooled: Sequence[str]) -> tuple[str, ...]:
    return (*pooled, *(f"{name}[{label}]" for name in _OF_LABELS for label in labels))
