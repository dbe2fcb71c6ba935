"""Metrics of semantic segmentation from confusion matrices of pixels.

A label that no true pixel has is in no mean, as for other tasks with labels; its pixels that are
predicted count against the labels that they truly have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from eagleray.tasks.label_metrics import Floats, LabelCounts, macro

__all__ = ["region_metrics", "resampled_region_metrics"]

Counts = npt.NDArray[np.int64]


def region_metrics(confusion: Floats | Counts, labels: Sequence[str]) -> dict[str, float]:
    """Return IoU, Dice and accuracy of pixels, of all labels together and of each.

    They are `mean_iou`, `mean_dice`, `pixel_accuracy` and `mean_accuracy`, then `iou[LABEL]`,
    `dice[LABEL]` and `accuracy[LABEL]` of each label with true pixels; none if there are no pixels.

    Args:
        confusion: Pixels by true label (rows) and predicted label (columns), (C, C), or such a
            matrix for each image (N, C, C).
        labels: Names of the C labels.
    """
    if confusion.ndim == 3:
        confusion = confusion.sum(axis=0)
    counts = _count_pixels(confusion)
    seen = np.flatnonzero(counts.true).tolist()
    if not seen:
        return {}
    found = {name: float(value) for name, value in _pooled(counts).items()}
    each = {"iou": _iou(counts), "dice": counts.f1, "accuracy": counts.recall}
    for name, values in each.items():
        found |= {f"{name}[{labels[index]}]": float(values[index]) for index in seen}
    return found


def resampled_region_metrics(confusion: Floats | Counts) -> Callable[[Floats], dict[str, Floats]]:
    """Return a function from weights of the images (R, N) to the pooled metrics, each (R,).

    Args:
        confusion: Pixels of each image by true and predicted label (N, C, C).
    """
    num_images, num_labels = confusion.shape[:2]
    cells = confusion.reshape(num_images, -1).astype(np.float64)

    def metrics(weights: Floats) -> dict[str, Floats]:
        sums = (weights @ cells).reshape(len(weights), num_labels, num_labels)
        return _pooled(_count_pixels(sums))

    return metrics


def _count_pixels(confusion: Floats | Counts) -> LabelCounts:
    """Count the pixels of each label (…, C): true, predicted, and both."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    predicted, true = confusion.sum(axis=-2), confusion.sum(axis=-1)
    return LabelCounts(hits, predicted.astype(np.float64), true.astype(np.float64))


def _iou(counts: LabelCounts) -> Floats:
    """Return the intersection over union of each label (…, C)."""
    union = counts.predicted + counts.true - counts.hits
    return np.asarray(np.divide(counts.hits, union, out=np.zeros_like(union), where=union > 0))


def _pooled(counts: LabelCounts) -> dict[str, Floats]:
    """Return means over labels with true pixels, and the share of all pixels that are right (…).

    The Dice coefficient is the F1 of pixels, and a label's accuracy is their recall. Without any
    true pixel all are NaN.
    """
    true = counts.true.sum(axis=-1, keepdims=True)
    shares = np.divide(counts.hits, true, out=np.full_like(counts.hits, np.nan), where=true > 0)
    return {
        "mean_iou": macro(_iou(counts), counts),
        "mean_dice": macro(counts.f1, counts),
        "pixel_accuracy": shares.sum(axis=-1),
        "mean_accuracy": macro(counts.recall, counts),
    }
