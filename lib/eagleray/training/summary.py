"""What a finished training job is summed up by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eagleray.data.inspection import Fault
from eagleray.training.monitor import Monitor
from eagleray.training.registration.register import RunSummary
from eagleray.training.result import TrainResult

__all__ = ["TrainSummary"]


@dataclass(frozen=True)
class TrainSummary(RunSummary):
    """Summary of a finished training job.

    Attributes:
        result: Result of the training.
        monitor: Metric that selected the best epoch.
        skipped: Images that could not be read.
    """

    result: TrainResult
    monitor: Monitor
    skipped: tuple[Fault, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the test split, such as `accuracy`."""
        return self.tested.evaluation.metrics

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {
            **super().as_json(),
            "validation": self.result.metrics,
            "best_epoch": self.result.best.epoch,
            "monitor": self.monitor.metric,
            "mode": self.monitor.mode,
            "epochs": list(self.result.epochs),
            "skipped": [fault.as_json() for fault in self.skipped],
        }
