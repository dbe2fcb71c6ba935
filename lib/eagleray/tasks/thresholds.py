"""Chooses the probability from which on a label holds, by validation images."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.tasks.label_metrics import LabelColumn

__all__ = ["best_thresholds", "last_highest", "threshold_between"]

_GOAL = re.compile(r"(recall|precision)\s*>=\s*(\d*\.?\d+)")


def best_thresholds(
    columns: Sequence[LabelColumn], present: Sequence[float], goal: str
) -> tuple[float, ...]:
    """Return a threshold for each label; one that all images have, or none, keeps its own.

    Args:
        columns: The labels.
        present: Their thresholds so far.
        goal: As for `Task.choose_thresholds`.

    Raises:
        InputError: If the goal is invalid or out of reach.
    """
    metric, limit = _parse(goal)
    return tuple(
        _threshold(column, metric, limit) if column.is_ranked else before
        for column, before in zip(columns, present, strict=True)
    )


def _parse(goal: str) -> tuple[str, float]:
    """Return the metric that must reach a limit, and the limit; `f1` has none."""
    found = _GOAL.fullmatch(goal.strip())
    if goal.strip() == "f1":
        return "f1", 0.0
    if found is None or float(found[2]) > 1:
        raise InputError(f"{goal!r} is not a goal; write f1, recall>=0.99 or precision>=0.9.")
    return found[1], float(found[2])


def _threshold(column: LabelColumn, metric: str, limit: float) -> float:
    from sklearn.metrics import precision_recall_curve

    precision, recall, scores = precision_recall_curve(column.holds, column.scores)
    precision, recall = precision[:-1], recall[:-1]  # the last point predicts nothing at all
    if metric == "f1":
        both = precision + recall
        values = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
        return threshold_between(scores, last_highest(values))
    held, best = (recall, precision) if metric == "recall" else (precision, recall)
    if held.max() < limit:
        raise InputError(
            f"No threshold gives label {column.label!r} {metric} {limit:g}, the highest is "
            f"{held.max():.4f}; lower the goal."
        )
    return threshold_between(scores, last_highest(np.where(held >= limit, best, -1.0)))


def last_highest(values: npt.NDArray[np.float64]) -> int:
    """Return the best point; of equal ones that with the highest threshold."""
    return len(values) - 1 - int(np.argmax(values[::-1]))


def threshold_between(scores: npt.NDArray[np.float32], index: int) -> float:
    """Return the middle between a score and the next lower one: no image here tells them apart.

    Args:
        scores: Rising scores, float32.
        index: Place of the lowest score that reaches the threshold; below the first score is 0.
    """
    score = float(scores[index])
    below = float(scores[index - 1]) if index else 0.0
    middle = (score + below) / 2
    # Neighbours in float32 have no middle, and the lower one must stay out.
    return middle if below < np.float32(middle) or not index else score
