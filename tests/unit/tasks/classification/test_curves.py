"""ROC and precision-recall curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from eagleray.tasks import Binary, Task
from eagleray.tasks.classification.curves import precision_recall_curves, roc_curves
from eagleray.tasks.page import Curves
from tests.support.evaluation import CLASSES, TAGS, answers_of

pytestmark = pytest.mark.numerical


def roc_names(task: Task, outputs: Tensor, targets: Tensor) -> list[str]:
    """Return the names of the lines of the page's ROC plot; none where there is no such plot."""
    section = task.section(outputs, targets, task.measure(outputs, targets))
    plots = [plot for plot in section.plots if isinstance(plot, Curves) and plot.title == "ROC"]
    return [name for plot in plots for name, _, _ in plot.lines]


def test_curves_go_through_the_points_they_must() -> None:
    task = Binary(labels=("no", "yes"))
    positive = torch.tensor([0.9, 0.8, 0.7, 0.4])
    outputs = torch.stack([1 - positive, positive], dim=1)
    targets = torch.tensor([1.0, 0.0, 1.0, 0.0])
    (roc,) = roc_curves(task.columns(outputs, targets))
    (precision,) = precision_recall_curves(task.columns(outputs, targets))
    assert roc.name == precision.name == "yes"
    at = dict(zip(roc.x.round(3).tolist(), roc.y.tolist(), strict=True))
    assert (at[0.0], at[0.25], at[0.5], at[1.0]) == (0.5, 0.5, 1.0, 1.0)
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(0.75, abs=0.01)
    at = dict(zip(precision.x.round(3).tolist(), precision.y.tolist(), strict=True))
    assert (at[0.25], at[0.5], at[0.75], at[1.0]) == pytest.approx((1.0, 1.0, 2 / 3, 2 / 3))


def test_labels_are_drawn_beside_their_average_and_classes_as_the_average_alone() -> None:
    assert roc_names(TAGS, *answers_of(TAGS, 80)) == ["macro average", "red", "round", "sweet"]
    assert roc_names(CLASSES, *answers_of(CLASSES, 80)) == ["macro average"]
    only_cats = answers_of(CLASSES, 20)[0], torch.zeros(20, dtype=torch.int64)
    assert roc_names(CLASSES, *only_cats) == []
