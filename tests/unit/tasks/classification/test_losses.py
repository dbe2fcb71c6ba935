"""Losses of each image, against torch's own and against the formula by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from eagleray.tasks import Binary, LossOptions, Multiclass, Multilabel, Regression, Task
from tests.support.training import small_spec

pytestmark = pytest.mark.numerical

KINDS = Multiclass(labels=("a", "b", "c"))
TAGS = Multilabel(labels=("x", "y"), thresholds=(0.5, 0.5))
BOTH = Binary(labels=("bad", "good"))


def losses(task: Task, texts: list[str], logits: torch.Tensor, **changes: Any) -> torch.Tensor:
    spec = small_spec("d", task=task.name, **changes)
    targets = torch.tensor(
        [task.encode(text) for text in texts], dtype=getattr(torch, task.target_dtype)
    )
    return task.image_losses(spec.loss_options, texts)(logits, targets)


def logits_of(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0)) * 2


def test_the_plain_losses_are_the_tasks_own() -> None:
    cases: list[tuple[Task, list[str], int]] = [
        (KINDS, ["a", "c", "c", "b"], 3),
        (BOTH, ["bad", "good", "good", "bad"], 1),
        (TAGS, ["x", "", "x|y", "y"], 2),
        (Regression(mean=2.0, std=3.0), ["1", "2.5", "-4", "8"], 1),
    ]
    for task, texts, width in cases:
        logits = logits_of(4, width)
        targets = torch.tensor(
            [task.encode(text) for text in texts], dtype=getattr(torch, task.target_dtype)
        )
        values = losses(task, texts, logits)
        assert values.shape == (4,)
        assert float(values.mean()) == pytest.approx(float(task.loss(logits, targets)))


def test_label_smoothing_is_torchs() -> None:
    logits = logits_of(3, 3)
    expected = functional.cross_entropy(
        logits, torch.tensor([0, 1, 2]), label_smoothing=0.1, reduction="none"
    )
    assert torch.allclose(losses(KINDS, ["a", "b", "c"], logits, label_smoothing=0.1), expected)


def test_the_focal_loss_is_the_papers() -> None:
    logits = logits_of(2, 3)
    values = losses(KINDS, ["a", "c"], logits, loss="focal", focal_gamma=2)
    for row, index in enumerate((0, 2)):
        true = float(logits[row].softmax(0)[index])
        assert float(values[row]) == pytest.approx(-((1 - true) ** 2) * math.log(true), rel=1e-5)
    tags = logits_of(3, 2)
    targets = torch.tensor([[1.0, 0], [0, 0], [1, 1]])
    expected = sigmoid_focal_loss(tags, targets, alpha=-1, gamma=1.5).mean(dim=1)
    found = losses(TAGS, ["x", "", "x|y"], tags, loss="focal", focal_gamma=1.5)
    assert torch.allclose(found, expected, rtol=1e-5)


def test_balanced_weights_give_every_class_the_same_say() -> None:
    texts = ["a"] * 6 + ["b"] * 3 + ["c"]
    even = torch.zeros(10, 3)
    values = losses(KINDS, texts, even, class_weights="balanced")
    assert values.tolist() == pytest.approx(
        [math.log(3) * weight for weight in [10 / 18] * 6 + [10 / 9] * 3 + [10 / 3]]
    )
    assert float(values[:6].sum()) == pytest.approx(float(values[9]), rel=1e-5)
    assert float(values.mean()) == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("task", "texts", "weights"),
    [
        (BOTH, ["bad"] * 9 + ["good"], [9.0]),
        (TAGS, ["x", "x", "y", ""], [1.0, 3.0]),
    ],
    ids=["binary", "multilabel"],
)
def test_balanced_positives_weigh_as_much_as_negatives(
    task: Task, texts: list[str], weights: list[float]
) -> None:
    logits = logits_of(len(texts), len(weights))
    targets = torch.tensor([task.encode(text) for text in texts]).reshape(logits.shape)
    expected = functional.binary_cross_entropy_with_logits(
        logits, targets, pos_weight=torch.tensor(weights), reduction="none"
    ).mean(dim=1)
    found = losses(task, texts, logits, class_weights="balanced")
    assert torch.allclose(found, expected, rtol=1e-5)


def test_explicit_weights_are_factors_of_the_losses_of_a_label() -> None:
    texts, weights = ["a", "b", "c", "b"], ["b=3", "c=0.5"]
    logits = logits_of(4, 3)
    plain = losses(KINDS, texts, logits)
    found = losses(KINDS, texts, logits, class_weights=weights)
    assert torch.allclose(found, plain * torch.tensor([1.0, 3.0, 0.5, 3.0]))
    both = logits_of(3, 1)
    plain = losses(BOTH, ["bad", "good", "bad"], both)
    found = losses(BOTH, ["bad", "good", "bad"], both, class_weights=["bad=4", "good=0.5"])
    assert torch.allclose(found, plain * torch.tensor([4.0, 0.5, 4.0]))
    tags = logits_of(3, 2)
    targets = torch.tensor([[1.0, 0], [0, 0], [1, 1]])
    expected = functional.binary_cross_entropy_with_logits(
        tags, targets, pos_weight=torch.tensor([1.0, 5.0]), reduction="none"
    ).mean(dim=1)
    assert torch.allclose(losses(TAGS, ["x", "", "x|y"], tags, class_weights="y=5"), expected)


def test_huber_and_l1_are_torchs_in_units_of_the_spread() -> None:
    task, logits = Regression(mean=2.0, std=4.0), torch.tensor([[0.0], [0.0], [3.0]])
    texts = ["2", "4", "-14"]  # 0, 0.5 and -4 spreads
    assert losses(task, texts, logits, loss="l1").tolist() == pytest.approx([0.0, 0.5, 7.0])
    assert losses(task, texts, logits, loss="huber").tolist() == pytest.approx([0.0, 0.125, 6.5])
    wide = losses(task, texts, logits, loss="huber", huber_delta=2.0)
    assert wide.tolist() == pytest.approx([0.0, 0.125, 2 * (7 - 1)])


def test_mixed_targets_cost_what_their_parts_cost() -> None:
    logits = logits_of(2, 3)
    hard = torch.tensor([0, 2])
    soft = KINDS.soft_targets(hard)
    assert soft.tolist() == [[1, 0, 0], [0, 0, 1]]
    value = KINDS.image_losses(LossOptions(), ["a"])
    mixed = 0.3 * soft + 0.7 * soft.roll(1, 0)
    expected = 0.3 * value(logits, hard) + 0.7 * value(logits, hard.roll(1, 0))
    assert torch.allclose(value(logits, mixed), expected, rtol=1e-5)


def test_the_soft_cross_entropy_is_the_papers() -> None:
    """Hinton, Vinyals, Dean 2015: T² KL(teacher || student) of softened probabilities."""
    student, teacher = torch.tensor([[2.0, 0.0, -2.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    softened = [math.exp(value / 2) for value in (2.0, 0.0, -2.0)]
    wanted = [math.exp(value / 2) for value in (0.0, 4.0, 0.0)]
    p = [value / sum(wanted) for value in wanted]
    q = [value / sum(softened) for value in softened]
    by_hand = 4 * sum(one * math.log(one / other) for one, other in zip(p, q, strict=True))
    found = KINDS.teacher_losses(KINDS, 2.0)(student, teacher)
    assert found.tolist() == pytest.approx([by_hand], rel=1e-5)
    assert KINDS.teacher_losses(KINDS, 2.0)(teacher, teacher).tolist() == pytest.approx([0.0])


@pytest.mark.parametrize(("task", "width"), [(TAGS, 2), (BOTH, 1)])
def test_labels_that_hold_or_not_are_softened_each_on_its_own(task: Task, width: int) -> None:
    student, teacher = logits_of(3, width), logits_of(6, width)[3:]
    found = task.teacher_losses(task, 3.0)(student, teacher)
    p, q = (teacher / 3).sigmoid(), (student / 3).sigmoid()
    by_hand = 9 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(dim=1)
    assert torch.allclose(found, by_hand, atol=1e-5)
    assert torch.allclose(task.teacher_losses(task, 3.0)(teacher, teacher), torch.zeros(3))


def test_the_teacher_of_a_regression_gives_values_in_its_own_unit() -> None:
    task, teacher = Regression(mean=10.0, std=2.0), Regression(mean=0.0, std=4.0)
    # The teacher's 3 stands for 12, which is 1 in the student's unit.
    found = task.teacher_losses(teacher, 4.0)(torch.tensor([[1.5]]), torch.tensor([[3.0]]))
    assert found.tolist() == pytest.approx([0.25])
