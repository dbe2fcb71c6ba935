"""ROC and precision-recall curves, thinned to what a plot can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_curve, roc_curve
from torch import Tensor

from eagleray.evaluation.outputs import LabelColumn, label_columns
from eagleray.tasks.tasks import Multiclass, Task

__all__ = ["Curve", "precision_recall_curves", "roc_curves"]

Floats = npt.NDArray[np.floating[Any]]

_GRID = np.linspace(0, 1, 201)
_MAX_LABELS_SHOWN = 8
_MACRO = "macro average"


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve.

    Attributes:
        name: A label, or the macro average.
        x: Share of false alarms, or recall, from 0 to 1.
        y: Recall, or precision, at x.
    """

    name: str
    x: Floats
    y: Floats


def roc_curves(task: Task, outputs: Tensor, targets: Tensor) -> list[Curve]:
    """Return recall over the share of false alarms, the macro average first."""
    return _curves(task, outputs, targets, _recall_on_grid)


def precision_recall_curves(task: Task, outputs: Tensor, targets: Tensor) -> list[Curve]:
    """Return precision over recall, the macro average first."""
    return _curves(task, outputs, targets, _precision_on_grid)


def _curves(task: Task, outputs: Tensor, targets: Tensor, on_grid: Any) -> list[Curve]:
    columns = label_columns(task, outputs, targets)
    found = [Curve(one.label, _GRID, on_grid(one)) for one in columns if one.is_ranked]
    if len(found) < 2:
        return found
    macro = Curve(_MACRO, _GRID, np.mean([curve.y for curve in found], axis=0))
    if isinstance(task, Multiclass) or len(found) > _MAX_LABELS_SHOWN:
        return [macro]
    return [macro, *found]


def _recall_on_grid(column: LabelColumn) -> Floats:
    false_alarms, recall, _ = roc_curve(column.holds, column.scores)
    # Of the points at one share of false alarms the last one is the best.
    places = np.searchsorted(false_alarms, _GRID, side="right") - 1
    straight = np.interp(_GRID, false_alarms, recall)
    return np.asarray(np.where(false_alarms[places] == _GRID, recall[places], straight))


def _precision_on_grid(column: LabelColumn) -> Floats:
    precision, recall, _ = precision_recall_curve(column.holds, column.scores)
    # Recall falls along the curve; the precision at a recall is that of the next point reaching it.
    places = np.searchsorted(recall[::-1], _GRID, side="left")
    return np.asarray(precision[::-1][np.minimum(places, len(recall) - 1)])
