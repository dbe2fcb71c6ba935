"""The optimizer's parameter groups, the learning-rate schedules and the moving average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.training.loop.optimizer import learning_rate, make_ema, make_optimizer
from eagleray.training.loop.stages import stages_of
from tests.support.training import small_spec


def test_learning_rates_fall_towards_the_input() -> None:
    module = build(Architecture(name="resnet18", num_outputs=7, in_channels=3))
    stages = stages_of(module, 7)
    optimizer = make_optimizer(small_spec("d", layer_decay=0.5), module, stages)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [
        2**-5,
        2**-4,
        1 / 8,
        1 / 4,
        0.5,
        1,
    ]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.1, 9: 1, 10: 1, 99: 1}),
        ("linear", {0: 0.1, 9: 1, 10: 1, 55: 0.5}),
        ("cosine", {0: 0.1, 10: 1, 55: 0.5}),
        ("step", {10: 1, 54: 1, 55: 0.1, 78: 0.01, 99: 0.01}),
        ("one_cycle", {9: 1, 10: 1, 55: 0.5}),
    ],
)
def test_schedules_rise_and_fall_as_named(schedule: str, expected: dict[int, float]) -> None:
    spec = small_spec("d", lr_schedule=schedule, warmup_ratio=0.1, learning_rate=2.0)
    for step, share in expected.items():
        assert learning_rate(spec, step, 100) == pytest.approx(2 * share, rel=1e-6)
    rates = [learning_rate(spec, step, 100) for step in range(100)]
    assert min(rates) > 0
    assert max(rates) <= 2


def test_the_moving_average_follows_the_weights_by_its_decay() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = make_ema(module, 0.5)
    expected = None
    for value in (1.0, 2.0, 4.0, 8.0):
        with torch.no_grad():
            module.weight.fill_(value)
        count = int(average.n_averaged)
        average.update_parameters(module)
        decay = min(0.5, (1 + count) / (10 + count))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert float(average.module.state_dict()["weight"]) == pytest.approx(expected)
