"""Metrics of labels: counts, ranks and top-k, as plain functions of arrays.

Precision, recall, F1, accuracy, average precision and ROC AUC are scikit-learn's. A label that no
image of the data has is in no macro average. A share of nothing is 0.

`LabelCounts` computes precision, recall and F1 for many resamples at once; a test holds it to
scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "COUNTED",
    "MIN_PROBABILITY",
    "RANKED",
    "LabelColumn",
    "LabelCounts",
    "count_labels",
    "count_metrics",
    "is_in_top",
    "log_losses",
    "macro",
    "rank_metrics",
    "weighted_mean",
    "weighted_roc_auc",
]

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]

MIN_PROBABILITY = float(np.finfo(np.float32).eps)
"""Stands for a probability of 0 where its logarithm is taken, as in scikit-learn."""
COUNTED = ("precision", "recall", "f1")
"""Metrics that counts of labels determine."""
RANKED = ("average_precision", "roc_auc")
"""Metrics that the order of scores determines."""


@dataclass(frozen=True, slots=True)
class LabelColumn:
    """One label against all others.

    Attributes:
        label: Name of the label.
        holds: Whether the label is true, bool (N,).
        scores: Probabilities of the label, float32 (N,).
    """

    label: str
    holds: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]

    @property
    def is_ranked(self) -> bool:
        """Whether there are images with the label and without it, which scores can order."""
        return bool(self.holds.any() and not self.holds.all())


def log_losses(scores: Floats, truth: Integers) -> npt.NDArray[np.float64]:
    """Return -log of each true label's probability (N,), from probabilities (N, num_labels)."""
    own = scores[np.arange(len(truth)), truth].astype(np.float64)
    return np.asarray(-np.log(np.clip(own, MIN_PROBABILITY, 1.0)))


def is_in_top(scores: Floats, truth: Integers, count: int) -> npt.NDArray[np.bool_]:
    """Return whether the true label is among the `count` most likely ones; ties go to the first.

    scikit-learn's `top_k_accuracy_score` lets ties go to the last, unlike predictions.

    Args:
        scores: Probabilities (N, num_labels).
        truth: Index of the true label (N,).
        count: Number of labels.
    """
    own = scores[np.arange(len(scores)), truth][:, None]
    before = np.arange(scores.shape[1]) < truth[:, None]
    rank = (scores > own).sum(axis=1) + ((scores == own) & before).sum(axis=1)
    return np.asarray(rank < count)


def count_metrics(
    predicted: Integers, truth: Integers, labels: Sequence[str], averages: Sequence[str]
) -> dict[str, float]:
    """Return precision, recall and F1 of each label, and their averages.

    Args:
        predicted: Indices of labels (N,), or 0 and 1 (N, num_labels).
        truth: True labels in the same form.
        labels: Names of the labels.
        averages: Of `macro`, `micro` and `weighted` those to compute.
    """
    from sklearn.metrics import precision_recall_fscore_support

    every = np.arange(len(labels))
    seen = np.flatnonzero(count_labels(truth, truth, len(labels)).true)
    if truth.ndim == 2:  # with one label, scikit-learn would take it for a binary task
        predicted, truth = (np.pad(array, ((0, 0), (0, 1))) for array in (predicted, truth))
    found: dict[str, float] = {}
    for average in (None, *averages):
        chosen = every if average in (None, "micro") else seen
        if not len(chosen):
            continue
        scores = precision_recall_fscore_support(
            truth, predicted, labels=chosen, average=average, zero_division=0
        )
        for name, values in zip(COUNTED, scores, strict=False):
            if average is not None:
                found[f"{name}_{average}"] = float(values)
                continue
            for label, value in zip(labels, values.tolist(), strict=True):
                found[f"{name}[{label}]"] = value
    return found


def rank_metrics(columns: Sequence[LabelColumn]) -> dict[str, float]:
    """Return average precision and ROC AUC of each ranked label, and their macro averages."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    functions = {"average_precision": average_precision_score, "roc_auc": roc_auc_score}
    found: dict[str, float] = {}
    for name, function in functions.items():
        values = {
            column.label: float(function(column.holds, column.scores))
            for column in columns
            if column.is_ranked
        }
        found |= {f"{name}[{label}]": value for label, value in values.items()}
        if values:
            found[f"{name}_macro"] = float(np.mean(list(values.values())))
    return found


# --- many resamples at once ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """How often each label is true, predicted, and both.

    Attributes:
        hits: Weight of the images whose true label was predicted (…, num_labels).
        predicted: Weight of the images with the label predicted (…, num_labels).
        true: Weight of the images with the label (…, num_labels).
    """

    hits: Floats
    predicted: Floats
    true: Floats

    @property
    def precision(self) -> Floats:
        """Share of the predictions that are true."""
        return _ratio(self.hits, self.predicted)

    @property
    def recall(self) -> Floats:
        """Share of the true labels that are predicted."""
        return _ratio(self.hits, self.true)

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.hits, self.predicted + self.true)

    @property
    def pooled(self) -> LabelCounts:
        """All labels as one (…,), for micro averages."""
        return LabelCounts(
            self.hits.sum(axis=-1), self.predicted.sum(axis=-1), self.true.sum(axis=-1)
        )


def count_labels(
    predicted: Integers, truth: Integers, num_labels: int, weights: Floats | None = None
) -> LabelCounts:
    """Count true and predicted labels.

    Args:
        predicted: Indices of labels (N,), or 0 and 1 (N, num_labels).
        truth: True labels in the same form.
        num_labels: Number of labels.
        weights: How often each image counts (…, N); None for once.
    """
    weights = np.ones(len(truth)) if weights is None else weights
    if truth.ndim == 2:
        parts = (predicted & truth, predicted, truth)
        return LabelCounts(*(weights @ part.astype(weights.dtype) for part in parts))
    rows = weights.reshape(-1, len(truth))
    right = predicted == truth
    hits = [np.bincount(truth[right], row[right], minlength=num_labels) for row in rows]
    predictions = [np.bincount(predicted, row, minlength=num_labels) for row in rows]
    true = [np.bincount(truth, row, minlength=num_labels) for row in rows]
    shape = (*weights.shape[:-1], num_labels)
    return LabelCounts(*(np.asarray(part).reshape(shape) for part in (hits, predictions, true)))


def macro(values: Floats, counts: LabelCounts) -> Floats:
    """Average over the labels that are true of an image; NaN if there are none."""
    seen = counts.true > 0
    total = np.where(seen, values, 0.0).sum(axis=-1)
    return _ratio(total, seen.sum(axis=-1), otherwise=np.nan)


def weighted_mean(values: npt.NDArray[Any], weights: Floats) -> Floats:
    """Return the mean of values (N,) for each row of weights (…, N)."""
    return np.asarray(weights @ values.astype(np.float64) / weights.sum(axis=-1))


def weighted_roc_auc(column: LabelColumn, weights: Floats) -> Floats:
    """Return the share of pairs of an image with the label and one without in the right order."""
    order = np.argsort(column.scores, kind="stable")
    scores = column.scores[order]
    starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    sorted_weights = weights[..., order].astype(np.float64)
    with_label = np.add.reduceat(sorted_weights * column.holds[order], starts, axis=-1)
    without = np.add.reduceat(sorted_weights * ~column.holds[order], starts, axis=-1)
    below = np.cumsum(without, axis=-1) - without / 2  # half of a pair of equal scores is in order
    pairs = with_label.sum(axis=-1) * without.sum(axis=-1)
    right = (with_label * below).sum(axis=-1)
    return np.asarray(np.divide(right, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0))


def _ratio(above: Floats, below: Any, *, otherwise: float = 0.0) -> Floats:
    filled = np.full(np.shape(above), otherwise)
    return np.asarray(np.divide(above, below, out=filled, where=np.asarray(below) > 0))
