"""Thresholds, chosen on images that the model has not learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.core.errors import InputError
from eagleray.tasks import Binary, Multilabel, Task
from tests.support.evaluation import CLASSES, DEFECTS, TAGS, WEIGHT, answers_of

pytestmark = pytest.mark.numerical


def binary(scores: list[float], truth: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    positive = torch.tensor(scores)
    return torch.stack([1 - positive, positive], dim=1), torch.tensor(truth).float()


@pytest.mark.parametrize(
    ("goal", "threshold"),
    [
        ("f1", 0.35),  # everything from 0.4 on: 3 of 4 right, none missed
        ("recall>=0.99", 0.35),
        ("recall >= 0.5", 0.75),
        ("precision>=0.9", 0.75),
        ("precision>=0.7", 0.35),
    ],
)
def test_a_threshold_lies_between_the_images_that_it_separates(goal: str, threshold: float) -> None:
    outputs, targets = binary([0.9, 0.8, 0.7, 0.4, 0.3, 0.1], [1, 1, 0, 1, 0, 0])
    task = DEFECTS.choose_thresholds(outputs, targets, goal=goal)
    assert isinstance(task, Binary)
    assert task.threshold == pytest.approx(threshold)
    assert task.labels == DEFECTS.labels


def test_neighbours_in_float32_are_parted_all_the_same() -> None:
    low = np.float32(0.5)
    high = np.nextafter(low, np.float32(1))
    outputs, targets = binary([float(high), float(low)], [1, 0])
    task = DEFECTS.choose_thresholds(outputs, targets)
    assert task.measure(outputs, targets)["accuracy"] == 1.0


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 40), st.booleans())
def test_no_other_threshold_has_a_higher_f1(seed: int, num_images: int, ties: bool) -> None:
    outputs, targets = answers_of(DEFECTS, num_images, seed=seed, ties=ties)
    chosen = DEFECTS.choose_thresholds(outputs, targets)
    assert isinstance(chosen, Binary)
    if targets.sum() in (0, num_images):
        assert chosen == DEFECTS
        return
    best = chosen.measure(outputs, targets)["f1"]
    for score in outputs[:, 1].tolist():
        other = DEFECTS.model_copy(update={"threshold": score})
        assert other.measure(outputs, targets)["f1"] <= best + 1e-9


def test_each_label_gets_its_own_threshold_or_keeps_it() -> None:
    outputs = torch.tensor([[0.9, 0.2, 0.5], [0.6, 0.3, 0.5], [0.1, 0.1, 0.5]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    task = TAGS.choose_thresholds(outputs, targets)
    assert isinstance(task, Multilabel)
    assert task.thresholds == pytest.approx((0.75, 0.25, 0.7))
    answers = task.predicted(outputs)
    np.testing.assert_array_equal(answers, task.truth(targets))


@pytest.mark.parametrize(
    ("task", "goal", "sentence"),
    [
        (CLASSES, "f1", "A multiclass model has no thresholds"),
        (WEIGHT, "f1", "A regression model has no thresholds"),
        (DEFECTS, "f2", "'f2' is not a goal"),
        (DEFECTS, "recall>=1.5", "'recall>=1.5' is not a goal"),
    ],
)
def test_an_invalid_choice_is_refused_in_a_sentence(task: Task, goal: str, sentence: str) -> None:
    outputs, targets = answers_of(task, 50)
    with pytest.raises(InputError, match=sentence):
        task.choose_thresholds(outputs, targets, goal=goal)


def test_a_precision_that_no_threshold_gives_names_the_label_and_the_highest() -> None:
    outputs, targets = binary([0.9, 0.8, 0.2], [0, 1, 1])
    with pytest.raises(InputError, match=r"label 'defect' precision 0\.95, the highest is 0\.6667"):
        DEFECTS.choose_thresholds(outputs, targets, goal="precision>=0.95")
