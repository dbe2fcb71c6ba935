"""The optimizer and its state, the learning-rate schedule, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from eagleray.training.extension import Extension
from eagleray.training.loop.fsdp import placed_like
from eagleray.training.loop.stages import Stage
from eagleray.training.spec import TrainSpec

__all__ = [
    "learning_rate",
    "make_ema",
    "make_optimizer",
    "optimizer_tensors",
    "restore_optimizer",
    "set_learning_rate",
]

_LR_SCALE = "lr_scale"  # key of a parameter group's factor of the learning rate
_ONE_CYCLE_START = 1 / 25
_STEP_MILESTONES, _STEP_GAMMA = (0.5, 0.75), 0.1


def make_optimizer(
    spec: TrainSpec, module: nn.Module, stages: Sequence[Stage]
) -> torch.optim.Optimizer:
    """Make the optimizer of a network, with a parameter group for each stage."""
    parameters = dict(module.named_parameters())
    depth = len(stages)
    groups = [
        {
            "params": [parameters[name] for name in stage.parameters],
            _LR_SCALE: spec.layer_decay ** (depth - 1 - index),
        }
        for index, stage in enumerate(stages)
    ]
    rate, decay = spec.learning_rate, spec.weight_decay
    if spec.optimizer == "sgd":
        nesterov = spec.momentum > 0
        return torch.optim.SGD(
            groups, rate, momentum=spec.momentum, nesterov=nesterov, weight_decay=decay
        )
    optimizer = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return optimizer(groups, rate, weight_decay=decay)


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return the state of an optimizer, named `PARAMETER/KEY`."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Load the state of an optimizer, named `PARAMETER/KEY`."""
    states: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        states.setdefault(name, {})[key] = tensor
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    state_dict: dict[str, Any] = optimizer.state_dict()
    parameters = [item for group in optimizer.param_groups for item in group["params"]]
    state_dict["state"] = {
        index: {
            key: placed_like(tensor, parameter)
            for key, tensor in states[names[id(parameter)]].items()
        }
        for index, parameter in enumerate(parameters)
        if names[id(parameter)] in states
    }
    optimizer.load_state_dict(state_dict)


def learning_rate(
    spec: TrainSpec, step: int, num_steps: int, extensions: Sequence[Extension] = ()
) -> float:
    """Return the learning rate of a step: a function of its position, so no state is kept.

    A step before an extension keeps the rate that it had. From there on, `constant` and `step`
    have the rate with which the run would have ended, `linear` and `cosine` that of a run of the
    new length, and `one_cycle` begins a cycle over the remaining steps.

    Args:
        spec: Specification with the schedule, the peak rate and the warmup ratio.
        step: Number of the step, from 0.
        num_steps: Number of steps of the run.
        extensions: Extensions of the run, in order.
    """
    return spec.learning_rate * _rate(spec, step, num_steps, extensions)


def _rate(spec: TrainSpec, step: int, num_steps: int, extensions: Sequence[Extension]) -> float:
    """Return the learning rate of a step as a fraction of the peak rate."""
    first, start = 0, _ONE_CYCLE_START
    if extensions:
        *earlier, last = extensions
        before = num_steps * last.planned // last.epochs
        if step < last.step or spec.lr_schedule in ("constant", "step"):
            return _rate(spec, step, before, earlier)
        if spec.lr_schedule == "one_cycle" and last.step:
            first, start = last.step, _rate(spec, last.step - 1, before, earlier)
    step, num_steps = step - first, num_steps - first
    warmup_steps = round(spec.warmup_ratio * num_steps)
    if step < warmup_steps:
        rising = (step + 1) / warmup_steps
        if spec.lr_schedule == "one_cycle":
            rising = start + (1 - start) * (1 - math.cos(math.pi * rising)) / 2
        return rising
    return _decay(spec, (step - warmup_steps) / max(1, num_steps - warmup_steps))


def _decay(spec: TrainSpec, done: float) -> float:
    """Return the factor of the peak rate once a fraction of the steps after warmup is done."""
    if spec.lr_schedule in ("one_cycle", "cosine"):
        return (1 + math.cos(math.pi * done)) / 2
    if spec.lr_schedule == "linear":
        return 1 - done
    if spec.lr_schedule == "step":
        return _STEP_GAMMA ** sum(done >= milestone for milestone in _STEP_MILESTONES)
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group, scaled by the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_LR_SCALE]


def make_ema(module: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a network's weights; buffers follow the network.

    The decay after n steps is at most `(1 + n) / (10 + n)`, so that the average soon forgets the
    initial weights.
    """

    def update(averages: Any, currents: Any, num_averaged: Tensor | int) -> None:
        count = int(num_averaged)
        torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(module, multi_avg_fn=update)
