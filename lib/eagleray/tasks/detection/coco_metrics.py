"""COCO's metrics of detections, of boxes or of masks, computed by `faster-coco-eval`.

Detections with the same score are ranked in their order: by image, then as they are listed. The
area of a true object is that of its box, or of its mask where masks are compared; COCO's own
files give the area of the mask for boxes too, which puts some objects into another size. Of an
image, 100 detections of a label count, or more where an image has more objects of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eagleray.tasks.detection.boxes import (
    COCO_DETECTIONS,
    DetectionSet,
    Doubles,
    Integers,
    overlapping_pairs,
)
from eagleray.tasks.detection.matching import ranks_among

if TYPE_CHECKING:
    from faster_coco_eval import COCO

__all__ = ["COCO_METRICS", "coco_metrics"]

COCO_METRICS = (
    "map",
    "map_50",
    "map_75",
    "map_small",
    "map_medium",
    "map_large",
    "mar_1",
    "mar_10",
    "mar_100",
    "mar_small",
    "mar_medium",
    "mar_large",
)
"""COCO's twelve metrics: average precision, then average recall, of all labels together."""

_IOU_50, _IOU_75 = 0, 5
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_MAX_1, _MAX_10, _MAX_100, _MOST = 0, 1, 2, -1


def coco_metrics(data: DetectionSet, labels: Sequence[str]) -> dict[str, float]:
    """Return COCO's twelve metrics, and `ap[LABEL]` and `ap_50[LABEL]` of each label.

    A metric is left out where it is not defined: for a label, or a size, without true objects.

    Args:
        data: The detections and the true objects.
        labels: Names of the labels.
    """
    if not len(data.crowd):
        return {}
    precision, recall = _evaluate(data)
    found = {
        "map": precision[:, :, :, _ALL, _MOST],
        "map_50": precision[_IOU_50, :, :, _ALL, _MOST],
        "map_75": precision[_IOU_75, :, :, _ALL, _MOST],
        "map_small": precision[:, :, :, _SMALL, _MOST],
        "map_medium": precision[:, :, :, _MEDIUM, _MOST],
        "map_large": precision[:, :, :, _LARGE, _MOST],
        "mar_1": recall[:, :, _ALL, _MAX_1],
        "mar_10": recall[:, :, _ALL, _MAX_10],
        "mar_100": recall[:, :, _ALL, _MAX_100],
        "mar_small": recall[:, :, _SMALL, _MOST],
        "mar_medium": recall[:, :, _MEDIUM, _MOST],
        "mar_large": recall[:, :, _LARGE, _MOST],
    }
    for index, label in enumerate(labels):
        found[f"ap[{label}]"] = precision[:, :, index, _ALL, _MOST]
        found[f"ap_50[{label}]"] = precision[_IOU_50, :, index, _ALL, _MOST]
    # COCO marks what is not defined by -1.
    defined = {name: values[values > -1] for name, values in found.items()}
    return {name: float(values.mean()) for name, values in defined.items() if values.size}


def _evaluate(data: DetectionSet) -> tuple[Doubles, Doubles]:
    """Return precision (IoU, recall, label, size, count) and recall (IoU, label, size, count)."""
    from faster_coco_eval import COCOeval_faster

    found = _annotations(data.image, data.label, data.box, data.area)
    for one, score in zip(found, data.score.tolist(), strict=True):
        one |= {"score": score, "iscrowd": 0}
    true = _annotations(data.true_image, data.true_label, data.true_box, data.true_area)
    for one, crowd in zip(true, data.crowd.tolist(), strict=True):
        one["iscrowd"] = int(crowd)
    evaluation = COCOeval_faster(
        _coco(data, true), _coco(data, found), "bbox", print_function=_silent
    )
    evaluation.params.maxDets = sorted({1, 10, COCO_DETECTIONS, data.max_detections})
    if data.masks is not None:
        evaluation.computeIoU = _overlaps_of_masks(data)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _annotations(
    image: Integers, label: Integers, box: Doubles, area: Doubles
) -> list[dict[str, Any]]:
    """Return an annotation of each object, in COCO's form; identifiers start at 1."""
    sides = np.hstack([box[:, :2], box[:, 2:] - box[:, :2]])
    columns = zip(image.tolist(), label.tolist(), sides.tolist(), area.tolist(), strict=True)
    return [
        {"id": row, "image_id": place + 1, "category_id": index + 1, "bbox": own, "area": pixels}
        for row, (place, index, own, pixels) in enumerate(columns, start=1)
    ]


def _overlaps_of_masks(data: DetectionSet) -> Callable[[int, int], Doubles]:
    """Return what gives COCO's evaluation the overlaps of an image's masks of one label.

    Rows are the detections that count, by falling score; columns are the true objects in order.
    """
    pairs = overlapping_pairs(data, 0.0, same_label=True)
    keys = data.image * data.num_labels + data.label
    true_keys = data.true_image * data.num_labels + data.true_label
    rank = ranks_among(keys, -data.score)
    column = ranks_among(true_keys, np.arange(len(true_keys)))
    most = data.max_detections
    pairs = pairs[rank[pairs.detection] < most]
    pairs = pairs[np.argsort(keys[pairs.detection], kind="stable")]
    num_keys = data.num_images * data.num_labels
    starts = np.searchsorted(keys[pairs.detection], np.arange(num_keys + 1))
    rows = np.bincount(keys, minlength=num_keys).clip(max=most)
    columns = np.bincount(true_keys, minlength=num_keys)

    def overlaps(image_id: int, category_id: int) -> Doubles:
        key = (image_id - 1) * data.num_labels + category_id - 1
        some = slice(starts[key], starts[key + 1])
        matrix = np.zeros((rows[key], columns[key]))
        matrix[rank[pairs.detection[some]], column[pairs.truth[some]]] = pairs.overlap[some]
        return matrix if matrix.size else np.empty(0)

    return overlaps


def _coco(data: DetectionSet, annotations: list[dict[str, Any]]) -> COCO:
    from faster_coco_eval import COCO

    return COCO(
        {
            "images": [
                {"id": image, "width": width, "height": height}
                for image, (width, height) in enumerate(data.size.tolist(), start=1)
            ],
            "categories": [{"id": label + 1} for label in range(data.num_labels)],
            "annotations": annotations,
        },
        print_function=_silent,
    )


def _silent(*_: object) -> None:
    """Print nothing."""
