"""Images to review: mistakes, and labels that are probably wrong."""

from __future__ import annotations

import pytest
import torch

from eagleray.tasks import Binary, Multiclass, Multilabel, Regression, Task
from eagleray.tasks.review import LabelReview
from tests.support.evaluation import CLASSES, TAGS, TASKS, WEIGHT, answers_of

pytestmark = pytest.mark.numerical

CAT, DOG, OWL = range(3)


# --- mistakes ---------------------------------------------------------------------------------


def test_the_surest_mistake_comes_first() -> None:
    outputs = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.9, 0.05, 0.05], [0.2, 0.1, 0.7]])
    targets = torch.tensor([CAT, OWL, DOG, OWL])
    first, second = CLASSES.worst_mistakes(outputs, targets, 24)
    assert (first.position, first.given, first.predicted) == (2, "dog", "cat")
    assert first.confidence == pytest.approx(0.9)
    assert (second.position, second.error) == (1, None)
    assert [one.position for one in CLASSES.worst_mistakes(outputs, targets, 1)] == [2]


def test_each_label_of_a_multilabel_image_is_a_prediction() -> None:
    outputs = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.45, 0.1]])  # thresholds 0.3, 0.5, 0.7
    targets = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    found = TAGS.worst_mistakes(outputs, targets, 24)
    assert [(one.position, one.given, one.predicted) for one in found] == [
        (0, "not red", "red"),
        (0, "round", "not round"),
        (1, "round", "not round"),
    ]
    assert [one.confidence for one in found] == pytest.approx([0.9, 0.9, 0.55])


def test_of_numbers_the_farthest_off_come_first() -> None:
    outputs, targets = torch.tensor([[50.0], [90.0], [60.0]]), torch.tensor([0.0, 0.0, 1.0])
    first, second = WEIGHT.worst_mistakes(outputs, targets, 24)
    assert (first.position, first.given, first.predicted, first.error) == (1, "50", "90", 40.0)
    assert (second.position, second.error, second.confidence) == (2, -10.0, None)


# --- labels -----------------------------------------------------------------------------------


def test_confident_learning_by_hand() -> None:
    # Mean confidence: cat (5 * 0.9 + 0.2) / 6 = 0.783, dog (0.8 + 0.8 + 0.9 + 0.6) / 4 = 0.775.
    # The joint counts 8 images on its diagonal and 1 off it; the last has no confident label.
    task = Multiclass(labels=("cat", "dog"))
    cat = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.9, 0.2, 0.2, 0.2, 0.1, 0.4])
    review = task.review_labels(
        torch.stack([cat, 1 - cat], dim=1), torch.tensor([CAT] * 6 + [DOG] * 4)
    )
    (found,) = review.suspects
    assert (found.position, found.given, found.suggested) == (5, "cat", "dog")
    assert found.confidence == pytest.approx(0.8)
    assert found.margin == pytest.approx(0.6)
    assert review.withheld == ""


def test_a_model_that_is_often_wrong_contradicts_no_label() -> None:
    # Two classes, and confident predictions that agree with 3 of 4 labels.
    task = Multiclass(labels=("cat", "dog"))
    cat = torch.tensor([0.8, 0.8, 0.8, 0.2, 0.2, 0.2, 0.2, 0.8])
    outputs = torch.stack([cat, 1 - cat], dim=1)
    review = task.review_labels(outputs, torch.tensor([CAT] * 4 + [DOG] * 4))
    assert review.suspects == ()
    assert review.withheld.startswith("2 labels are contradicted by a confident prediction")
    assert (
        "at a rate of 0.75, and below 0.8 the model is more likely to be wrong" in review.withheld
    )


def test_a_label_that_is_mostly_predicted_wrongly_is_not_suggested() -> None:
    # A rare label: of three confident predictions of it, one is right. All other labels agree.
    task = Multiclass(labels=("cat", "dog"))
    dog = torch.tensor([0.05] * 30 + [0.7] * 3)
    outputs = torch.stack([1 - dog, dog], dim=1)
    review = task.review_labels(outputs, torch.tensor([CAT] * 32 + [DOG]))
    assert review.suspects == ()
    assert review.withheld == ""


@pytest.mark.parametrize("task", TASKS[:3], ids=lambda task: task.name)
def test_what_a_weak_model_contradicts_is_counted_and_not_listed(task: Task) -> None:
    outputs, targets = answers_of(task, 180, skill=0.3)
    review = task.review_labels(outputs, targets)
    assert review.suspects == ()
    assert "and not listed" in review.withheld


def test_a_prediction_below_its_labels_usual_confidence_suspects_nothing() -> None:
    task = Binary(labels=("fine", "defect"))
    positive = torch.tensor([0.95, 0.97, 0.6, 0.1])  # 0.6 for defect, where 0.96 is usual
    outputs = torch.stack([1 - positive, positive], dim=1)
    review = task.review_labels(outputs, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert review == LabelReview()


def test_a_class_that_no_image_is_given_is_never_suggested() -> None:
    outputs = torch.tensor([[0.2, 0.1, 0.7], [0.1, 0.3, 0.6]])
    assert CLASSES.review_labels(outputs, torch.tensor([CAT, DOG])).suspects == ()


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
    found = task.review_labels(outputs, wrong).suspects[:40]
    hits = [one for one in found if one.position in swapped.tolist()]
    assert len(hits) >= 20
    assert len(hits) >= 0.9 * min(len(found), 30)
    margins = [one.margin for one in found]
    assert margins == sorted(margins, reverse=True)
    if isinstance(task, Multilabel):
        assert {one.suggested.removeprefix("not ") for one in hits} == {"round"}


def test_a_regression_has_no_labels_to_suspect() -> None:
    outputs, targets = answers_of(WEIGHT, 20)
    assert WEIGHT.review_labels(outputs, targets) == LabelReview()
    assert isinstance(WEIGHT, Regression)
