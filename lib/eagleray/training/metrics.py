"""The metrics of a task over the validation split, gathered from all workers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from eagleray.tasks import Task

__all__ = ["TaskMetrics"]


class TaskMetrics(Metric):
    """Metrics that training follows; in a distributed run `compute` gathers from all workers.

    Args:
        task: The task, which defines the metrics.
    """

    decisions: list[Tensor]
    targets: list[Tensor]

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._task = task
        self.add_state("decisions", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add activated outputs (N, …) and encoded targets (N, …)."""
        self.decisions.append(self._task.decide(outputs))
        self.targets.append(targets)

    def compute(self) -> dict[str, float]:
        """Return the metrics by name; NaN where the network's outputs are not finite."""
        # After a synchronisation each state is one tensor.
        decisions, targets = (
            torch.cat(state) if isinstance(state, list) else state
            for state in (self.decisions, self.targets)
        )
        names = self._task.metric_names
        if not decisions.isfinite().all():
            return dict.fromkeys(names, math.nan)
        found = self._task.training_metrics(decisions, targets)
        return {name: found[name] for name in names}
