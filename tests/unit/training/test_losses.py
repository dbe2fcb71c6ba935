"""Losses of each image, against torch's own and against the formula by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from eagleray.tasks.tasks import Binary, Multiclass, Multilabel, Regression, Task
from eagleray.training.losses import class_weights, make_losses, soft_targets
from tests.support.training import small_spec

pytestmark = pytest.mark.numerical

KINDS = Multiclass(labels=("a", "b", "c"))
TAGS = Multilabel(labels=("x", "y"), thresholds=(0.5, 0.5))
BOTH = Binary(labels=("bad", "good"))


def losses(task: Task, texts: list[str], logits: torch.Tensor, **changes: Any) -> torch.Tensor:
    spec = small_spec("d", task=task.name, **changes)
    targets = torch.tensor(
        [task.encode(text) for text in texts], dtype=getattr(torch, task.target_type)
    )
    return make_losses(spec, task, texts)(logits, targets)


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
            [task.encode(text) for text in texts], dtype=getattr(torch, task.target_type)
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
    weights = class_weights(KINDS, texts)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    counts = torch.tensor([6, 3, 1])
    assert (weights * counts).tolist() == pytest.approx([10 / 3] * 3)
    assert class_weights(BOTH, ["bad"] * 9 + ["good"]).tolist() == [9.0]
    assert class_weights(TAGS, ["x", "x", "y", ""]).tolist() == pytest.approx([1.0, 3.0])
    even = torch.zeros(10, 3)
    values = losses(KINDS, texts, even, class_weights="balanced")
    assert float(values[:6].sum()) == pytest.approx(float(values[9]), rel=1e-5)


def test_mixed_targets_cost_what_their_parts_cost() -> None:
    logits = logits_of(2, 3)
    hard = torch.tensor([0, 2])
    soft = soft_targets(KINDS, hard)
    assert soft.tolist() == [[1, 0, 0], [0, 0, 1]]
    value = make_losses(small_spec("d"), KINDS, ["a"])
    mixed = 0.3 * soft + 0.7 * soft.roll(1, 0)
    expected = 0.3 * value(logits, hard) + 0.7 * value(logits, hard.roll(1, 0))
    assert torch.allclose(value(logits, mixed), expected, rtol=1e-5)
