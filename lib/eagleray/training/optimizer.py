"""How weights move: the optimizer, the learning rate of every step, and the average of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from eagleray.training.spec import TrainSpec
from eagleray.training.stages import Stage

__all__ = ["learning_rate", "make_ema", "make_optimizer", "set_learning_rate"]

_SHARE = "share"  # of the learning rate that a stage gets; kept in the optimizer's groups
_ONE_CYCLE_START = 1 / 25
_STEP_AT, _STEP_FACTOR = (0.5, 0.75), 0.1


def make_optimizer(
    spec: TrainSpec, module: nn.Module, stages: Sequence[Stage]
) -> torch.optim.Optimizer:
    """Make the optimizer of a network, with a group of parameters for each of its stages."""
    parameters = dict(module.named_parameters())
    depth = len(stages)
    groups = [
        {
            "params": [parameters[name] for name in stage.parameters],
            _SHARE: spec.layer_decay ** (depth - 1 - index),
        }
        for index, stage in enumerate(stages)
    ]
    rate, decay = spec.learning_rate, spec.weight_decay
    if spec.optimizer == "sgd":
        nesterov = spec.momentum > 0
        return torch.optim.SGD(
            groups, rate, momentum=spec.momentum, nesterov=nesterov, weight_decay=decay
        )
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, rate, weight_decay=decay)


def learning_rate(spec: TrainSpec, step: int, num_steps: int) -> float:
    """Return the learning rate of a step: a function of its place in the run, so no state is kept.

    Args:
        spec: Names the schedule, the highest rate and the share of the warm-up.
        step: From 0.
        num_steps: Of the whole run.
    """
    warm = round(spec.warmup_ratio * num_steps)
    if step < warm:
        rising = (step + 1) / warm
        if spec.lr_schedule == "one_cycle":
            rising = (
                _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * (1 - math.cos(math.pi * rising)) / 2
            )
        return spec.learning_rate * rising
    done = (step - warm) / max(1, num_steps - warm)
    return spec.learning_rate * _remaining(spec, done)


def _remaining(spec: TrainSpec, done: float) -> float:
    """Return the share of the learning rate when a share of the steps after warm-up is done."""
    if spec.lr_schedule in ("one_cycle", "cosine"):
        return (1 + math.cos(math.pi * done)) / 2
    if spec.lr_schedule == "linear":
        return 1 - done
    if spec.lr_schedule == "step":
        return _STEP_FACTOR ** sum(done >= place for place in _STEP_AT)
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every stage its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_SHARE]


def make_ema(module: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a network's weights; buffers follow the network.

    Early on the average is short, `(1 + n) / (10 + n)` after n steps, so that it does not hang on
    to the first weights.
    """

    def average(averages: Any, currents: Any, num_averaged: Tensor | int) -> None:
        count = int(num_averaged)
        torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(module, multi_avg_fn=average)
