"""COCO's metrics of detections, of boxes or of masks, computed by `faster-coco-eval`.

Detections with the same score are ranked in their order: by image, then as they are listed. The
area of a true object is that of its box, or of its mask where masks are compared; COCO's own
files give the area of the mask for boxes too, which puts some objects into another size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eagleray.core.errors import InputError
from eagleray.tasks.detection_boxes import DetectionSet, Doubles, Integers

if TYPE_CHECKING:
    from faster_coco_eval import COCO

__all__ = ["COCO_METRICS", "Masks", "coco_metrics"]

Rle = Mapping[str, Any]
"""A mask in COCO's run-length encoding: `size`, (height, width), and the text `counts`."""

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
_MAX_1, _MAX_10, _MAX_100 = range(3)


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of a set of detections.

    Attributes:
        detections: For each image the masks of its detections, in their order.
        truths: For each image the masks of its true objects and crowds, in their order.
    """

    detections: Sequence[Sequence[Rle]]
    truths: Sequence[Sequence[Rle]]


def coco_metrics(
    data: DetectionSet, labels: Sequence[str], masks: Masks | None = None
) -> dict[str, float]:
    """Return COCO's twelve metrics, and `ap[LABEL]` and `ap_50[LABEL]` of each label.

    A metric is left out where it is not defined: for a label, or a size, without true objects.

    Args:
        data: The detections and the true objects.
        labels: Names of the labels.
        masks: Compares masks instead of boxes.

    Raises:
        InputError: If the masks are not those of the detections and the true objects.
    """
    if not len(data.crowd):
        return {}
    precision, recall = _evaluate(data, masks)
    found = {
        "map": precision[:, :, :, _ALL, _MAX_100],
        "map_50": precision[_IOU_50, :, :, _ALL, _MAX_100],
        "map_75": precision[_IOU_75, :, :, _ALL, _MAX_100],
        "map_small": precision[:, :, :, _SMALL, _MAX_100],
        "map_medium": precision[:, :, :, _MEDIUM, _MAX_100],
        "map_large": precision[:, :, :, _LARGE, _MAX_100],
        "mar_1": recall[:, :, _ALL, _MAX_1],
        "mar_10": recall[:, :, _ALL, _MAX_10],
        "mar_100": recall[:, :, _ALL, _MAX_100],
        "mar_small": recall[:, :, _SMALL, _MAX_100],
        "mar_medium": recall[:, :, _MEDIUM, _MAX_100],
        "mar_large": recall[:, :, _LARGE, _MAX_100],
    }
    for index, label in enumerate(labels):
        found[f"ap[{label}]"] = precision[:, :, index, _ALL, _MAX_100]
        found[f"ap_50[{label}]"] = precision[_IOU_50, :, index, _ALL, _MAX_100]
    # COCO marks what is not defined by -1.
    defined = {name: values[values > -1] for name, values in found.items()}
    return {name: float(values.mean()) for name, values in defined.items() if values.size}


def _evaluate(data: DetectionSet, masks: Masks | None) -> tuple[Doubles, Doubles]:
    """Return precision (IoU, recall, label, size, count) and recall (IoU, label, size, count)."""
    from faster_coco_eval import COCOeval_faster

    shapes = _box_shapes(data.box), _box_shapes(data.true_box)
    if masks is not None:
        shapes = (
            _mask_shapes("detections", masks.detections, data.image, data.size),
            _mask_shapes("true objects", masks.truths, data.true_image, data.size),
        )
    found = _annotations(data.image, data.label, shapes[0])
    for one, score in zip(found, data.score.tolist(), strict=True):
        one |= {"score": score, "iscrowd": 0}
    true = _annotations(data.true_image, data.true_label, shapes[1])
    for one, crowd in zip(true, data.crowd.tolist(), strict=True):
        one["iscrowd"] = int(crowd)
    evaluation = COCOeval_faster(
        _coco(data, true),
        _coco(data, found),
        "bbox" if masks is None else "segm",
        print_function=_silent,
    )
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _annotations(
    image: Integers, label: Integers, shapes: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return an annotation of each shape, in COCO's form; identifiers start at 1."""
    columns = zip(image.tolist(), label.tolist(), shapes, strict=True)
    return [
        {"id": row, "image_id": place + 1, "category_id": index + 1, **shape}
        for row, (place, index, shape) in enumerate(columns, start=1)
    ]


def _box_shapes(boxes: Doubles) -> list[dict[str, Any]]:
    sides = boxes[:, 2:] - boxes[:, :2]
    rows = np.hstack([boxes[:, :2], sides]).tolist()
    areas = (sides[:, 0] * sides[:, 1]).tolist()
    return [{"bbox": row, "area": area} for row, area in zip(rows, areas, strict=True)]


def _mask_shapes(
    what: str, masks: Sequence[Sequence[Rle]], image: Integers, size: Integers
) -> list[dict[str, Any]]:
    from faster_coco_eval.core.mask import area

    if [len(one) for one in masks] != np.bincount(image, minlength=len(size)).tolist():
        raise InputError(
            f"The masks of {what} are not one for each of them; pass a list for each image, with "
            "as many masks as it has rows that are not empty."
        )
    shapes = [dict(mask) for one in masks for mask in one]
    for shape, place in zip(shapes, image.tolist(), strict=True):
        width, height = size[place].tolist()
        if list(shape["size"]) != [height, width]:
            raise InputError(
                f"A mask of {what} of image {place} has size {list(shape['size'])}, and the image "
                f"[{height}, {width}]; give masks of the original image, as [height, width]."
            )
    areas = area(shapes).tolist() if shapes else []
    return [
        {"segmentation": shape, "area": float(pixels)}
        for shape, pixels in zip(shapes, areas, strict=True)
    ]


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
