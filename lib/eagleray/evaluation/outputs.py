"""Outputs and targets as plain arrays: what was answered, what is true, and counts of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from eagleray.tasks.tasks import Binary, Multiclass, Multilabel, Regression, Task

__all__ = [
    "MIN_PROBABILITY",
    "LabelColumn",
    "LabelCounts",
    "answered_labels",
    "count_labels",
    "is_in_top",
    "label_columns",
    "log_losses",
    "macro",
    "true_labels",
    "true_values",
]

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]

MIN_PROBABILITY = float(np.finfo(np.float32).eps)
"""What stands for a probability of 0 where its logarithm is taken, as in scikit-learn."""


def true_labels(task: Task, targets: Tensor) -> Integers:
    """Return encoded targets as indices of labels (N,), for multilabel as 0 and 1 (N, num_labels).

    Args:
        task: What the model answers; not a regression.
        targets: Encoded targets (N, …).
    """
    assert not isinstance(task, Regression)
    truth: Integers = targets.cpu().numpy().astype(np.int64)
    return truth


def answered_labels(task: Task, outputs: Tensor) -> Integers:
    """Return what the task makes of outputs (N, num_labels), in the form of `true_labels`."""
    assert not isinstance(task, Regression)
    scores = outputs.cpu().numpy()
    if isinstance(task, Multiclass):
        return np.asarray(scores.argmax(axis=1), np.int64)
    if isinstance(task, Binary):
        return (scores[:, 1] >= np.float32(task.threshold)).astype(np.int64)
    return (scores >= np.asarray(task.thresholds, np.float32)).astype(np.int64)


def true_values(task: Regression, targets: Tensor) -> npt.NDArray[np.float64]:
    """Return encoded targets in the unit of the training table, float64 (N,)."""
    values = targets.cpu().numpy().astype(np.float64) * task.std + task.mean
    # A number that was encoded and decoded differs from itself by rounding, which matters at 0.
    values[np.abs(values) < 1e-6 * task.std] = 0.0
    return np.asarray(values, np.float64)


@dataclass(frozen=True, slots=True)
class LabelColumn:
    """One label against all others.

    Attributes:
        label: Its name.
        holds: Whether it is true, bool (N,).
        scores: Its probabilities, float32 (N,).
    """

    label: str
    holds: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]

    @property
    def is_ranked(self) -> bool:
        """Whether there are images with the label and without, so that scores can tell them."""
        return bool(self.holds.any() and not self.holds.all())


def label_columns(task: Task, outputs: Tensor, targets: Tensor) -> Iterator[LabelColumn]:
    """Yield each label against all others; of a binary task the positive one only."""
    scores, truth = outputs.cpu().numpy(), true_labels(task, targets)
    if isinstance(task, Binary):
        yield LabelColumn(task.labels[1], truth == 1, scores[:, 1])
        return
    for index, label in enumerate(task.labels):
        holds = truth == index if isinstance(task, Multiclass) else truth[:, index] == 1
        yield LabelColumn(label, holds, scores[:, index])


def is_in_top(outputs: Tensor, truth: Integers, count: int) -> npt.NDArray[np.bool_]:
    """Whether the true one is among the `count` likeliest labels; of equals the first is likelier.

    Args:
        outputs: Probabilities (N, num_labels).
        truth: Index of the true label (N,).
        count: How many labels.
    """
    scores = outputs.cpu().numpy()
    own = scores[np.arange(len(scores)), truth][:, None]
    before = np.arange(scores.shape[1]) < truth[:, None]
    rank = (scores > own).sum(axis=1) + ((scores == own) & before).sum(axis=1)
    return np.asarray(rank < count)


def log_losses(outputs: Tensor, truth: Integers) -> npt.NDArray[np.float64]:
    """Return -log of each true label's probability, float64 (N,)."""
    own = outputs.cpu().numpy()[np.arange(len(truth)), truth].astype(np.float64)
    return np.asarray(-np.log(np.clip(own, MIN_PROBABILITY, 1.0)))


# --- counts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """How often each label was true, was answered, and both.

    What would be a division by 0 is 0, as in scikit-learn.

    Attributes:
        hits: Answered and true (…, num_labels).
        answered: Answered (…, num_labels).
        true: True (…, num_labels).
    """

    hits: Floats
    answered: Floats
    true: Floats

    @property
    def precision(self) -> Floats:
        """Share of the answers that are true."""
        return _ratio(self.hits, self.answered)

    @property
    def recall(self) -> Floats:
        """Share of what is true that was answered."""
        return _ratio(self.hits, self.true)

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.hits, self.answered + self.true)

    @property
    def pooled(self) -> LabelCounts:
        """All labels as one (…,), which gives micro averages."""
        return LabelCounts(
            self.hits.sum(axis=-1), self.answered.sum(axis=-1), self.true.sum(axis=-1)
        )


def count_labels(
    task: Task, answers: Integers, truth: Integers, weights: Floats | None = None
) -> LabelCounts:
    """Count answers and truths.

    Args:
        task: Not a regression.
        answers: From `answered_labels`.
        truth: From `true_labels`.
        weights: How often each image counts (…, N); None for once.
    """
    weights = np.ones(len(truth)) if weights is None else weights
    if isinstance(task, Multilabel):
        parts = (answers & truth, answers, truth)
        return LabelCounts(*(weights @ part.astype(weights.dtype) for part in parts))
    length = len(task.labels)
    rows = weights.reshape(-1, len(truth))
    right = answers == truth
    hits = [np.bincount(truth[right], row[right], minlength=length) for row in rows]
    answered = [np.bincount(answers, row, minlength=length) for row in rows]
    true = [np.bincount(truth, row, minlength=length) for row in rows]
    shape = (*weights.shape[:-1], length)
    return LabelCounts(*(np.asarray(part).reshape(shape) for part in (hits, answered, true)))


def macro(values: Floats, counts: LabelCounts) -> Floats:
    """Average over the labels that are true of an image; NaN where none is."""
    seen = counts.true > 0
    total = np.where(seen, values, 0.0).sum(axis=-1)
    return _ratio(total, seen.sum(axis=-1), otherwise=np.nan)


def _ratio(above: Floats, below: Any, *, otherwise: float = 0.0) -> Floats:
    filled = np.full(np.shape(above), otherwise)
    return np.asarray(np.divide(above, below, out=filled, where=np.asarray(below) > 0))
