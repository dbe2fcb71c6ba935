"""Judges whether a training run learned: the reasons why it did not, as sentences.

A run did not learn if its model is no better on the test images than a prediction that looks at no
image, or worse than the parent that it started from; if its loss diverged; or if no epoch was
better than the first one and the model is not clearly better than such a prediction. A model that
is has learned, be it all in its first epoch, as pretrained networks often do. A model that did not
learn is registered, and no alias moves to it by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eagleray.evaluation.bootstrap import Measured, paired_bootstrap
from eagleray.evaluation.evaluate import Evaluation
from eagleray.tasks import Task
from eagleray.training.monitor import Monitor, mode_of
from eagleray.training.result import TrainResult

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ComparedMetric", "comparison_monitor", "reasons_not_learned"]

_MAX_LOSS_RATIO = 3.0  # to the loss of guessing: more than any scheme of weights makes of it


@dataclass(frozen=True)
class ComparedMetric:
    """A metric of a new model and of another one, on the same images.

    Attributes:
        other: What the other model is, as in `flowers/3`.
        value: Metric of the new model.
        other_value: Metric of the other model.
        num_images: Number of the images.
    """

    other: str
    value: float
    other_value: float
    num_images: int


def comparison_monitor(monitor: Monitor, task: Task, metrics: Mapping[str, float]) -> Monitor:
    """Return the metric that compares models on test images.

    It is the one that the run monitors, if the test images yield it, and otherwise the task's first
    headline metric.

    Args:
        monitor: The metric that the run monitors.
        task: The task.
        metrics: Metrics on the test images.
    """
    if monitor.name in metrics:
        return monitor
    name = next((name for name in task.headline_names if name in metrics), next(iter(metrics)))
    return Monitor(name, mode_of(name))


def reasons_not_learned(
    result: TrainResult,
    evaluation: Evaluation,
    monitor: Monitor,
    train_targets: Tensor,
    *,
    guessing: float | None,
    parent: ComparedMetric | None = None,
    loss: str = "train_loss",
) -> tuple[str, ...]:
    """Return why a run did not learn, as sentences; none if it did.

    Args:
        result: Result of the training.
        evaluation: Evaluation of the model on the test split.
        monitor: The metric that the run monitors.
        train_targets: Encoded targets (N, …) of the training split.
        guessing: Loss of a network whose outputs are all 0; None if that is not defined.
        parent: The comparison with the parent on the test images, if there is a parent of the same
            task and labels.
        loss: Metric of an epoch with the loss that is compared with guessing.
    """
    judge = comparison_monitor(monitor, evaluation.task, evaluation.metrics)
    constant = _constant_of(evaluation, train_targets)
    first_epoch = _no_better_than_first_epoch(result, monitor)
    if first_epoch and constant and _clearly_better_than_constant(evaluation, judge, constant):
        first_epoch = None
    reasons = [
        None if constant is None else _no_better_than_constant(evaluation, judge, constant),
        _worse_than_parent(judge, parent),
        _diverged(result.epochs, guessing, loss),
        first_epoch,
    ]
    return tuple(reason for reason in reasons if reason is not None)


@dataclass(frozen=True)
class _Constant:
    """The constant prediction: its description, and its outputs (N, …) for the test images."""

    description: str
    outputs: Tensor


def _constant_of(evaluation: Evaluation, train_targets: Tensor) -> _Constant | None:
    found = evaluation.task.constant_prediction(train_targets)
    if found is None:
        return None
    description, outputs = found
    return _Constant(description, outputs.expand(len(evaluation.targets), *outputs.shape))


def _no_better_than_constant(
    evaluation: Evaluation, judge: Monitor, constant: _Constant
) -> str | None:
    targets = evaluation.targets
    value = evaluation.metrics[judge.name]
    baseline = evaluation.task.measure(constant.outputs, targets).get(judge.name)
    if baseline is None or judge.is_better(value, baseline):
        return None
    return (
        f"On {len(targets):,} test images its {judge.name} is {value:.4f}, and "
        f"{constant.description} gives {baseline:.4f}."
    )


def _clearly_better_than_constant(
    evaluation: Evaluation, judge: Monitor, constant: _Constant
) -> bool:
    """Whether the 95 % interval of the difference (paired bootstrap) holds improvements only.

    A metric that is not resampled, such as that of one label, gives way to the task's first
    headline metric that is.
    """
    task, targets = evaluation.task, evaluation.targets
    differences = paired_bootstrap(
        Measured(task, constant.outputs, targets), Measured(task, evaluation.outputs, targets)
    )
    names = (name for name in (judge.name, *task.headline_names) if name in differences)
    name = next(names, None)
    interval = None if name is None else differences[name].interval
    if name is None or interval is None:
        return False
    return interval.low > 0 if mode_of(name) == "max" else interval.high < 0


def _worse_than_parent(judge: Monitor, parent: ComparedMetric | None) -> str | None:
    if parent is None or not judge.is_better(parent.other_value, parent.value):
        return None
    return (
        f"On the same {parent.num_images:,} test images its {judge.name} is {parent.value:.4f}, "
        f"and that of its parent {parent.other} is {parent.other_value:.4f}."
    )


def _diverged(
    epochs: Sequence[Mapping[str, float]], guessing: float | None, loss: str
) -> str | None:
    first, last = epochs[0][loss], epochs[-1][loss]
    if guessing is None or not last > _MAX_LOSS_RATIO * guessing:
        return None
    since = f" after {first:.4g} in the first" if len(epochs) > 1 else ""
    return (
        f"The loss diverged: it is {last:.4g} in the last epoch{since}, and guessing has "
        f"{guessing:.4g}; lower the learning rate."
    )


def _no_better_than_first_epoch(result: TrainResult, monitor: Monitor) -> str | None:
    """Neither the monitored metric nor the validation loss ever improved on the first epoch."""
    epochs, metric = result.epochs, monitor.metric
    if len(epochs) == 1 or monitor.is_better(result.metrics[metric], epochs[0][metric]):
        return None
    losses = [epoch.get("validation_loss", math.nan) for epoch in epochs]
    if min(losses[1:], default=math.nan) < losses[0]:  # a metric may be perfect at once
        return None
    return (
        f"None of its {len(epochs)} epochs is better than the first one, neither by {metric} "
        f"({epochs[0][metric]:.4f}) nor by validation_loss ({losses[0]:.4f})."
    )
