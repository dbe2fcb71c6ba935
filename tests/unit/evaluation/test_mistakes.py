"""The images to look at: mistakes, labels that are probably wrong, and curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eagleray.evaluation.curves import precision_recall_curves, roc_curves
from eagleray.evaluation.mistakes import suspected_labels, worst_mistakes
from eagleray.tasks.tasks import Binary, Multiclass, Multilabel, Regression, Task
from tests.support.evaluation import CLASSES, TAGS, TASKS, WEIGHT, answers_of, evaluation_of

pytestmark = pytest.mark.numerical

CAT, DOG, OWL = range(3)


# --- mistakes ---------------------------------------------------------------------------------


def test_the_surest_mistake_comes_first() -> None:
    outputs = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.9, 0.05, 0.05], [0.2, 0.1, 0.7]])
    evaluation = evaluation_of(CLASSES, outputs, torch.tensor([CAT, OWL, DOG, OWL]))
    first, second = worst_mistakes(evaluation)
    assert (first.row, first.given, first.answered) == (2, "dog", "cat")
    assert first.confidence == pytest.approx(0.9)
    assert (second.row, second.uri, second.error) == (1, "/images/1.png", None)
    assert [one.row for one in worst_mistakes(evaluation, 1)] == [2]


def test_rows_are_those_of_the_data_and_not_of_the_good_images() -> None:
    outputs, targets = torch.tensor([[0.1, 0.9, 0.0]]), torch.tensor([CAT])
    evaluation = evaluation_of(CLASSES, outputs.repeat(3, 1), targets.repeat(3))
    third = type(evaluation)(
        CLASSES, evaluation.images, np.asarray([2]), outputs, targets, failures=()
    )
    assert [(one.row, one.uri) for one in worst_mistakes(third)] == [(2, "/images/2.png")]


def test_of_a_multilabel_image_each_label_is_an_answer() -> None:
    outputs = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.45, 0.1]])  # thresholds 0.3, 0.5, 0.7
    targets = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    found = worst_mistakes(evaluation_of(TAGS, outputs, targets))
    assert [(one.row, one.given, one.answered) for one in found] == [
        (0, "not red", "red"),
        (0, "round", "not round"),
        (1, "round", "not round"),
    ]
    assert [one.confidence for one in found] == pytest.approx([0.9, 0.9, 0.55])


def test_of_numbers_the_farthest_off_come_first() -> None:
    outputs, targets = torch.tensor([[50.0], [90.0], [60.0]]), torch.tensor([0.0, 0.0, 1.0])
    first, second = worst_mistakes(evaluation_of(WEIGHT, outputs, targets))
    assert (first.row, first.given, first.answered, first.error) == (1, "50", "90", 40.0)
    assert (second.row, second.error, second.confidence) == (2, -10.0, None)


# --- labels -----------------------------------------------------------------------------------


def test_confident_learning_by_hand() -> None:
    # Mean confidence: cat (0.9 + 0.7 + 0.2) / 3 = 0.6, dog (0.8 + 0.6) / 2 = 0.7.
    task = Multiclass(labels=("cat", "dog"))
    outputs = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.2, 0.8], [0.4, 0.6]])
    evaluation = evaluation_of(task, outputs, torch.tensor([CAT, CAT, CAT, DOG, DOG]))
    (found,) = suspected_labels(evaluation)
    assert (found.row, found.given, found.suggested) == (2, "cat", "dog")
    assert found.confidence == pytest.approx(0.8)
    assert found.margin == pytest.approx(0.6)


def test_an_answer_below_its_labels_usual_confidence_suspects_nothing() -> None:
    task = Binary(labels=("fine", "defect"))
    positive = torch.tensor([0.95, 0.97, 0.6, 0.1])  # 0.6 for defect, where 0.96 is usual
    outputs = torch.stack([1 - positive, positive], dim=1)
    assert suspected_labels(evaluation_of(task, outputs, torch.tensor([1.0, 1.0, 0.0, 0.0]))) == []


def test_a_class_that_no_image_is_given_is_never_suggested() -> None:
    outputs = torch.tensor([[0.2, 0.1, 0.7], [0.1, 0.3, 0.6]])
    assert suspected_labels(evaluation_of(CLASSES, outputs, torch.tensor([CAT, DOG]))) == []


@pytest.mark.parametrize("task", TASKS[:3], ids=lambda task: task.name)
def test_labels_that_were_swapped_are_found_again(task: Task) -> None:
    outputs, targets = answers_of(task, 600, skill=5.0)
    swapped = torch.arange(0, 600, 20)
    wrong = targets.clone()
    if isinstance(task, Multilabel):
        wrong[swapped, 1] = 1 - targets[swapped, 1]
    elif isinstance(task, Binary):
        wrong[swapped] = 1 - targets[swapped]
    else:
        wrong[swapped] = (targets[swapped] + 1) % 3
    found = suspected_labels(evaluation_of(task, outputs, wrong), count=40)
    hits = [one for one in found if one.row in swapped.tolist()]
    assert len(hits) >= 20
    assert len(hits) >= 0.9 * min(len(found), 30)
    margins = [one.margin for one in found]
    assert margins == sorted(margins, reverse=True)
    if isinstance(task, Multilabel):
        assert {one.suggested.removeprefix("not ") for one in hits} == {"round"}


def test_a_regression_has_no_labels_to_suspect() -> None:
    outputs, targets = answers_of(WEIGHT, 20)
    assert suspected_labels(evaluation_of(WEIGHT, outputs, targets)) == []
    assert isinstance(WEIGHT, Regression)


# --- curves -----------------------------------------------------------------------------------


def test_curves_go_through_the_points_they_must() -> None:
    task = Binary(labels=("no", "yes"))
    positive = torch.tensor([0.9, 0.8, 0.7, 0.4])
    outputs = torch.stack([1 - positive, positive], dim=1)
    targets = torch.tensor([1.0, 0.0, 1.0, 0.0])
    (roc,) = roc_curves(task, outputs, targets)
    (precision,) = precision_recall_curves(task, outputs, targets)
    assert roc.name == precision.name == "yes"
    at = dict(zip(roc.x.round(3).tolist(), roc.y.tolist(), strict=True))
    assert (at[0.0], at[0.25], at[0.5], at[1.0]) == (0.5, 0.5, 1.0, 1.0)
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(0.75, abs=0.01)
    at = dict(zip(precision.x.round(3).tolist(), precision.y.tolist(), strict=True))
    assert (at[0.25], at[0.5], at[0.75], at[1.0]) == pytest.approx((1.0, 1.0, 2 / 3, 2 / 3))


def test_labels_are_drawn_beside_their_average_and_classes_as_the_average_alone() -> None:
    assert [one.name for one in roc_curves(TAGS, *answers_of(TAGS, 80))] == [
        "macro average",
        "red",
        "round",
        "sweet",
    ]
    assert [one.name for one in roc_curves(CLASSES, *answers_of(CLASSES, 80))] == ["macro average"]
    only_cats = answers_of(CLASSES, 20)[0], torch.zeros(20, dtype=torch.int64)
    assert roc_curves(CLASSES, *only_cats) == []
