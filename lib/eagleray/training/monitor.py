"""The metric that selects the best epoch, ends a run early and ranks the trials of a tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from eagleray.tasks import Task
from eagleray.training.spec import TrainSpec

__all__ = ["Mode", "Monitor", "mode_of", "monitor_of"]

Mode = Literal["min", "max"]

_LOW_IS_GOOD = ("loss", "error", "ece")


@dataclass(frozen=True)
class Monitor:
    """A metric of the validation split, and which of its values are good."""

    name: str
    mode: Mode

    @property
    def metric(self) -> str:
        """Key of the metric in the metrics of an epoch."""
        return f"validation_{self.name}"

    def is_better(self, value: float, other: float) -> bool:
        """Return whether a value is strictly better than another; NaN is worse than any number."""
        if math.isnan(value) or math.isnan(other):
            return math.isnan(other) and not math.isnan(value)
        return value > other if self.mode == "max" else value < other


def mode_of(metric: str) -> Mode:
    """Return whether high or low values of a metric are good: losses and errors are low."""
    name = metric.partition("[")[0].removesuffix("_macro")
    return "min" if name.split("_")[-1] in _LOW_IS_GOOD else "max"


def monitor_of(_spec: TrainSpec, task: Task) -> Monitor:
    """Return the metric that a run monitors."""
    return Monitor(task.metric_names[0], "max")
