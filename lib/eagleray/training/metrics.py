"""The metrics of a task over the images of an epoch, gathered from all workers."""

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
        extra: A metric beside `metric_names` of the task, of those that it measures.
        choose_thresholds: Whether to decide by the best thresholds for these images, as a model
            does whose thresholds are chosen after training.
    """

    values: list[Tensor]
    targets: list[Tensor]

    def __init__(
        self, task: Task, extra: str | None = None, *, choose_thresholds: bool = False
    ) -> None:
        super().__init__()
        self._task, self._chooses_thresholds = task, choose_thresholds
        is_new = extra is not None and extra not in task.metric_names
        self._extra: tuple[str, ...] = (extra,) if extra is not None and is_new else ()
        # Decisions are smaller than outputs: one number for an image, not one for each label.
        self._keeps_outputs = choose_thresholds or bool(self._extra)
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add activated outputs (N, …) and encoded targets (N, …)."""
        self.values.append(outputs if self._keeps_outputs else self._task.decide(outputs))
        self.targets.append(targets)

    def compute(self) -> dict[str, float]:
        """Return the metrics by name; NaN where the network's outputs are not finite.

        A metric that is not defined for these images is NaN, too.
        """
        values, targets = (_joined(state) for state in (self.values, self.targets))
        names = (*self._task.metric_names, *self._extra)
        if not values.isfinite().all():
            return dict.fromkeys(names, math.nan)
        if not self._keeps_outputs:
            found = self._task.training_metrics(values, targets)
        else:
            task = self._task
            if self._chooses_thresholds:
                task = task.choose_thresholds(values, targets)
            found = task.training_metrics(task.decide(values), targets)
            if self._extra:
                found |= task.measure(values, targets)
        return {name: found.get(name, math.nan) for name in names}

    def gather(self) -> dict[str, Tensor]:
        """Return the images of all workers so far as tensors, for `restore`.

        Every worker calls this together.
        """
        with self.sync_context():
            return {"values": _joined(self.values), "targets": _joined(self.targets)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Add images that `gather` has returned; one worker does so for all."""
        for name in ("values", "targets"):
            getattr(self, name).append(tensors[name].to(self.device))


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    """Return a state as one tensor, which it is already after a synchronisation."""
    return torch.cat(state) if isinstance(state, list) else state
