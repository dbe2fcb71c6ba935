"""Detections and true objects for tests, and their metrics as pycocotools computes them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.tasks.detection.boxes import CROWD, OBJECT, DetectionSet, detection_set
from eagleray.tasks.detection.coco_metrics import COCO_METRICS
from eagleray.tasks.segmentation.mask_observations import TRUE_ROW, observe_masks, shared_pixels

Floats = npt.NDArray[np.float32]
Row = tuple[float, float, float, float, float, float]

WIDTH, HEIGHT = 320, 240
LABELS = ("bolt", "nut", "washer")


def padded(images: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> tuple[Floats, Floats]:
    """Return outputs and targets of images, each a list of detections and one of true objects."""
    most = max([1, *(len(detections) for detections, _ in images)])
    most_true = max([1, *(len(truths) for _, truths in images)])
    outputs = np.zeros((len(images), most, 6), np.float32)
    targets = np.zeros((len(images), 1 + most_true, 6), np.float32)
    targets[:, 0, :2] = WIDTH, HEIGHT
    for place, (detections, truths) in enumerate(images):
        outputs[place, : len(detections)] = np.reshape(detections, (-1, 6))
        targets[place, 1 : 1 + len(truths)] = np.reshape(truths, (-1, 6))
    return outputs, targets


def data_of(
    images: Sequence[tuple[Sequence[Row], Sequence[Row]]], num_labels: int = len(LABELS)
) -> DetectionSet:
    return detection_set(*padded(images), num_labels)


def random_detections(seed: int) -> tuple[Floats, Floats]:
    """Return outputs and targets of up to eight images, some of them without either.

    Every second set has boxes on a coarse grid, so that overlaps tie; every third one has scores of
    one digit, so that scores do.
    """
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(generator.integers(1, 9)):
        truths = [
            (*_box(generator, seed), float(generator.integers(len(LABELS))), _kind(generator))
            for _ in range(generator.integers(0, 9))
        ]
        detections = [
            _detection(generator, seed, truths) for _ in range(generator.choice((0, 5, 15, 40)))
        ]
        images.append((sorted(detections, key=lambda row: -row[4]), truths))
    return padded(images)


def _kind(generator: np.random.Generator) -> float:
    return float(generator.choice((OBJECT, OBJECT, OBJECT, CROWD)))


def _box(generator: np.random.Generator, seed: int) -> tuple[float, float, float, float]:
    x, y = generator.uniform(0, 200), generator.uniform(0, 140)
    width, height = generator.uniform(4, 10 * 2 ** generator.uniform(0, 4.5), 2)
    return _rounded((x, y, min(x + width, WIDTH), min(y + height, HEIGHT)), seed)


def _rounded(box: Sequence[float], seed: int) -> tuple[float, float, float, float]:
    if seed % 2:
        x1, y1, x2, y2 = box
    else:
        x1, y1, x2, y2 = (8.0 * round(value / 8) for value in box)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _detection(generator: np.random.Generator, seed: int, truths: Sequence[Row]) -> Row:
    box, label = _box(generator, seed), float(generator.integers(len(LABELS)))
    if truths and generator.uniform() < 0.8:
        near = truths[int(generator.integers(len(truths)))]
        noise = generator.normal(0, generator.choice((1, 4, 10)), 4)
        box = _rounded(np.maximum(np.array(near[:4]) + noise, 0).tolist(), seed)
        label = near[4] if generator.uniform() < 0.8 else label
    score = float(generator.uniform(0.05, 1))
    return (*box, round(score, 1) if seed % 3 == 0 else score, label)


@dataclass(frozen=True)
class Masks:
    """For each image the masks of its detections, and of its true objects, in their order."""

    detections: Sequence[Sequence[dict[str, Any]]]
    truths: Sequence[Sequence[dict[str, Any]]]


def observed_masks(outputs: Floats, targets: Floats, masks: Masks) -> tuple[Floats, Floats]:
    """Return the observations of images with masks, and their targets."""
    from pycocotools.mask import area

    observed = []
    wide = np.zeros((*targets.shape[:2], TRUE_ROW), np.float32)
    wide[:, :, :6] = targets
    for place, (own, true) in enumerate(zip(masks.detections, masks.truths, strict=True)):
        wide[place, 1 : 1 + len(true), 6] = [area(one) for one in true]
        counts, true_counts = ([one["counts"].decode() for one in side] for side in (own, true))
        shared = shared_pixels(counts, true_counts, HEIGHT, WIDTH)
        areas = np.array([area(one) for one in own], np.int64)
        observed.append(
            observe_masks(outputs[place], areas, shared, wide[place, 1 : 1 + len(true)])
        )
    return np.stack(observed), wide


def masks_of(outputs: Floats, targets: Floats) -> Masks:
    """Return a mask for each detection and each true object: the ellipse in its box."""
    return Masks(
        [[_ellipse(row) for row in rows if row[4] > 0] for rows in outputs],
        [[_ellipse(row) for row in rows[1:] if row[5] > 0] for rows in targets],
    )


def _ellipse(row: Floats) -> dict[str, Any]:
    from pycocotools import mask

    x1, y1, x2, y2 = row[:4].astype(float)
    x, y = np.arange(WIDTH) + 0.5, np.arange(HEIGHT)[:, None] + 0.5
    across, along = ((2 * x - x1 - x2) / (x2 - x1)) ** 2, ((2 * y - y1 - y2) / (y2 - y1)) ** 2
    inside = (across + along <= 1).astype(np.uint8)
    found: dict[str, Any] = mask.encode(np.asfortranarray(inside))
    return found


def pycocotools_metrics(
    outputs: Floats, targets: Floats, masks: Masks | None = None
) -> dict[str, float]:
    """Return COCO's twelve metrics and AP of each label by pycocotools; -1 for undefined ones."""
    from pycocotools.cocoeval import COCOeval

    found: list[dict[str, Any]] = []
    true: list[dict[str, Any]] = []
    for image, (rows, true_rows) in enumerate(zip(outputs, targets[:, 1:], strict=True)):
        kept = [row for row in rows.tolist() if row[4] > 0]
        true_kept = [row for row in true_rows.tolist() if row[5] > 0]
        shapes = [_shape(row) for row in kept]
        true_shapes = [_shape(row) for row in true_kept]
        if masks is not None:
            shapes = [_mask_shape(one) for one in masks.detections[image]]
            true_shapes = [_mask_shape(one) for one in masks.truths[image]]
        for row, shape in zip(kept, shapes, strict=True):
            found.append({**shape, **_named(image, row[5], found), "score": row[4], "iscrowd": 0})
        for row, shape in zip(true_kept, true_shapes, strict=True):
            crowd = int(row[5] == CROWD)
            true.append({**shape, **_named(image, row[4], true), "iscrowd": crowd})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _dataset(len(outputs), true),
            _dataset(len(outputs), found),
            "bbox" if masks is None else "segm",
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = dict(zip(COCO_METRICS, evaluation.stats.tolist(), strict=True))
    for index, label in enumerate(LABELS):
        precision = evaluation.eval["precision"][:, :, index, 0, 2]
        metrics[f"ap[{label}]"] = float(precision.mean())
        metrics[f"ap_50[{label}]"] = float(precision[0].mean())
    return metrics


def _shape(row: Sequence[float]) -> dict[str, Any]:
    x1, y1, x2, y2 = row[:4]
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def _mask_shape(mask: Any) -> dict[str, Any]:
    from pycocotools.mask import area

    return {"segmentation": dict(mask), "area": float(area(mask))}


def _named(image: int, label: float, before: Sequence[object]) -> dict[str, int]:
    return {"id": len(before) + 1, "image_id": image + 1, "category_id": int(label) + 1}


def _dataset(num_images: int, annotations: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    images = [{"id": image + 1, "width": WIDTH, "height": HEIGHT} for image in range(num_images)]
    categories = [{"id": index + 1, "name": label} for index, label in enumerate(LABELS)]
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco
