"""ROC and precision-recall curves, thinned to what a plot can show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.tasks.label_metrics import LabelColumn

__all__ = ["Curve", "precision_recall_curves", "roc_curves"]

Floats = npt.NDArray[np.floating[Any]]

_GRID = np.linspace(0, 1, 201)
_MAX_LABELS_SHOWN = 8
_MACRO = "macro average"


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve.

    Attributes:
        name: A label, or `macro average`.
        x: False positive rate, or recall, from 0 to 1.
        y: Recall, or precision, at x.
    """

    name: str
    x: Floats
    y: Floats


def roc_curves(columns: Sequence[LabelColumn], *, only_macro: bool = False) -> list[Curve]:
    """Return recall over the false positive rate, the macro average first.

    Args:
        columns: The labels.
        only_macro: Whether to leave out the labels where there are several, as for many of them.
    """
    return _curves(columns, _recall_on_grid, only_macro=only_macro)


def precision_recall_curves(
    columns: Sequence[LabelColumn], *, only_macro: bool = False
) -> list[Curve]:
    """Return precision over recall, the macro average first; arguments as for `roc_curves`."""
    return _curves(columns, _precision_on_grid, only_macro=only_macro)


def _curves(
    columns: Sequence[LabelColumn], on_grid: Callable[[LabelColumn], Floats], *, only_macro: bool
) -> list[Curve]:
    found = [Curve(one.label, _GRID, on_grid(one)) for one in columns if one.is_ranked]
    if len(found) < 2:
        return found
    macro = Curve(_MACRO, _GRID, np.mean([curve.y for curve in found], axis=0))
    if only_macro or len(found) > _MAX_LABELS_SHOWN:
        return [macro]
    return [macro, *found]


def _recall_on_grid(column: LabelColumn) -> Floats:
    from sklearn.metrics import roc_curve

    false_positive_rate, recall, _ = roc_curve(column.holds, column.scores)
    # Of the points at one false positive rate the last one is the best.
    places = np.searchsorted(false_positive_rate, _GRID, side="right") - 1
    straight = np.interp(_GRID, false_positive_rate, recall)
    return np.asarray(np.where(false_positive_rate[places] == _GRID, recall[places], straight))


def _precision_on_grid(column: LabelColumn) -> Floats:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(column.holds, column.scores)
    # Recall falls along the curve; the precision at a recall is that of the next point reaching it.
    places = np.searchsorted(recall[::-1], _GRID, side="left")
    return np.asarray(precision[::-1][np.minimum(places, len(recall) - 1)])
