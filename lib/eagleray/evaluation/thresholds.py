"""From which probability on a label holds: chosen on images that the model has not learned."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_curve
from torch import Tensor

from eagleray.core.errors import InputError
from eagleray.evaluation.outputs import LabelColumn, label_columns
from eagleray.tasks.tasks import Binary, Multilabel, Task

__all__ = ["choose_thresholds"]

_GOAL = re.compile(r"(recall|precision)\s*>=\s*(\d*\.?\d+)")


def choose_thresholds(
    task: Task, outputs: Tensor, targets: Tensor, *, goal: str = "f1"
) -> Binary | Multilabel:
    """Choose each label's threshold; one that all images have, or none, keeps what it has.

    Calibrate first: a temperature moves probabilities, and thresholds do not move with them.

    Args:
        task: Binary or multilabel.
        outputs: float32 tensor (N, num_labels) of probabilities, of validation images.
        targets: Encoded targets (N, …).
        goal: `f1` for the highest F1; `recall>=0.99` for the highest precision with that recall;
            `precision>=0.9` for the highest recall with that precision.

    Returns:
        The task with its new thresholds.

    Raises:
        InputError: The task has no thresholds, or the goal is none or cannot be reached.
    """
    if not isinstance(task, (Binary, Multilabel)):
        raise InputError(f"A {task.name} task has no thresholds to choose.")
    wanted = _parse(goal)
    old = (task.threshold,) if isinstance(task, Binary) else task.thresholds
    chosen = tuple(
        _threshold(column, *wanted) if column.is_ranked else before
        for column, before in zip(label_columns(task, outputs, targets), old, strict=True)
    )
    if isinstance(task, Binary):
        return task.model_copy(update={"threshold": chosen[0]})
    return task.model_copy(update={"thresholds": chosen})


def _parse(goal: str) -> tuple[str, float]:
    """Return what must reach a limit, and the limit; `f1` has none."""
    found = _GOAL.fullmatch(goal.strip())
    if goal.strip() == "f1":
        return "f1", 0.0
    if found is None or float(found[2]) > 1:
        raise InputError(f"{goal!r} is no goal; write f1, recall>=0.99 or precision>=0.9.")
    return found[1], float(found[2])


def _threshold(column: LabelColumn, wanted: str, limit: float) -> float:
    precision, recall, scores = precision_recall_curve(column.holds, column.scores)
    precision, recall = precision[:-1], recall[:-1]  # the last point answers nothing at all
    if wanted == "f1":
        both = precision + recall
        values = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
        return _between(scores, _last_highest(values))
    held, best = (recall, precision) if wanted == "recall" else (precision, recall)
    if held.max() < limit:
        raise InputError(
            f"No threshold gives label {column.label!r} {wanted} {limit:g}, the highest is "
            f"{held.max():.4f}; lower the goal."
        )
    return _between(scores, _last_highest(np.where(held >= limit, best, -1.0)))


def _last_highest(values: npt.NDArray[np.float64]) -> int:
    """Return the best point; of equals the one with the highest threshold."""
    return len(values) - 1 - int(np.argmax(values[::-1]))


def _between(scores: npt.NDArray[np.float32], index: int) -> float:
    """Return the middle between a score and the next lower one: no image here tells them apart."""
    score = float(scores[index])
    below = float(scores[index - 1]) if index else 0.0
    middle = (score + below) / 2
    # Neighbours in float32 have no middle, and the lower one must stay out.
    return middle if below < np.float32(middle) or not index else score
