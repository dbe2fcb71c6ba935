"""The metric that selects the best epoch, ends a run early and ranks the trials of a tuning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from eagleray.core.errors import InputError
from eagleray.tasks import Task
from eagleray.tasks.metric_names import require_metric
from eagleray.training.spec import TrainSpec

__all__ = ["LOSS", "Mode", "Monitor", "metric_title", "mode_of", "monitor_of", "require_monitor"]

Mode = Literal["min", "max"]

LOSS = "loss"
"""Monitors the validation loss, which is the task's default loss whatever a run minimises."""

_LOW_IS_GOOD = ("loss", "error", "ece")


@dataclass(frozen=True)
class Monitor:
    """A metric of the validation split, and which of its values are good.

    Attributes:
        name: Name of the metric as an evaluation has it, such as `recall_macro`; or `loss`.
        mode: `max` if high values are good, `min` if low ones are.
    """

    name: str
    mode: Mode

    @property
    def metric(self) -> str:
        """Key of the metric in the metrics of an epoch."""
        return f"validation_{self.name}"

    @property
    def title(self) -> str:
        """The metric for people: `validation accuracy`."""
        return metric_title(self.metric)

    @property
    def best_title(self) -> str:
        """The metric with its mode for people: `highest validation accuracy`."""
        return f"{'highest' if self.mode == 'max' else 'lowest'} {self.title}"

    def is_better(self, value: float, other: float) -> bool:
        """Return whether a value is strictly better than another; NaN is worse than any number."""
        if math.isnan(value) or math.isnan(other):
            return math.isnan(other) and not math.isnan(value)
        return value > other if self.mode == "max" else value < other

    def best(self, values: Iterable[float]) -> float | None:
        """Return the best value; None if no value is a number."""
        numbers = [value for value in values if not math.isnan(value)]
        return (max if self.mode == "max" else min)(numbers, default=None)

    def epochs_without_improvement(self, values: Sequence[float]) -> int:
        """Return the number of values since the last one that was better than all before it."""
        best = 0
        for place, value in enumerate(values):
            if self.is_better(value, values[best]):
                best = place
        return len(values) - 1 - best


def metric_title(metric: str) -> str:
    """Return the name of a metric for people; the label of `recall[my_label]` is kept."""
    name, bracket, label = metric.partition("[")
    return f"{name.replace('_', ' ')}{bracket}{label}"


def mode_of(metric: str) -> Mode:
    """Return whether high or low values of a metric are good: losses and errors are low."""
    name = metric.partition("[")[0].removesuffix("_macro")
    return "min" if name.split("_")[-1] in _LOW_IS_GOOD else "max"


def monitor_of(spec: TrainSpec, task: Task) -> Monitor:
    """Return the metric that a run monitors.

    Without a name in the specification it is the task's choice, which depends on whether classes
    are weighted or sampled in balance, and on whether thresholds are chosen after training.
    """
    name = spec.monitor
    if name == "auto":
        chooses_thresholds = spec.thresholds == "f1" and "thresholds" in task.fitted
        name = task.default_monitor(
            is_balanced=spec.balances_classes, chooses_thresholds=chooses_thresholds
        )
    return Monitor(name, mode_of(name) if spec.mode == "auto" else spec.mode)


def require_monitor(spec: TrainSpec, task: Task, targets: Tensor) -> None:
    """Check that the validation split yields the monitored metric.

    Args:
        spec: Specification of the run.
        task: Prediction task.
        targets: Encoded targets (N, …) of the validation split.

    Raises:
        UnknownNameError: If it is no metric of the task; the message has the nearest names.
        InputError: If it is not defined for the split.
    """
    name = monitor_of(spec, task).name
    yielded = [LOSS, *task.measured_names(targets)]
    if name in (*yielded, *task.metric_names):
        return
    place = spec.name_of("monitor")
    require_metric(name, [LOSS, *task.measured_names()], where=place)
    raise InputError(
        f"{place}: {name!r} is not defined for the validation split, which lacks a label or has it "
        f"everywhere; take another metric, such as {' or '.join(yielded[:2])}."
    )
