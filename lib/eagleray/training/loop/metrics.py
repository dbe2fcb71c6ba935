"""The metrics of a task over the images of an epoch, gathered from all workers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eagleray.tasks import Task
from eagleray.tasks.padding import join_padded
from eagleray.training.loop.distributed import DistributedContext

__all__ = ["TaskMetrics"]


class TaskMetrics:
    """Metrics that training follows; in a distributed run `compute` gathers from all workers.

    Args:
        task: The task, which defines the metrics.
        extra: A metric beside `metric_names` of the task, of those that it measures.
        choose_thresholds: Whether to decide by the best thresholds for these images, as a model
            does whose thresholds are chosen after training.
        context: Distributed context of the worker; None for a single process.
    """

    def __init__(
        self,
        task: Task,
        extra: str | None = None,
        *,
        choose_thresholds: bool = False,
        context: DistributedContext | None = None,
    ) -> None:
        self._task, self._chooses_thresholds, self._context = task, choose_thresholds, context
        is_new = extra is not None and extra not in task.metric_names
        self._extra: tuple[str, ...] = (extra,) if extra is not None and is_new else ()
        # Decisions are smaller than outputs: one number for an image, not one for each label.
        self._keeps_outputs = choose_thresholds or bool(self._extra)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._values: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add activated outputs (N, …) and targets (N, …) as the loss takes them."""
        outputs, targets = self._task.observe_batch(outputs, targets)
        self._values.append(outputs if self._keeps_outputs else self._task.decide(outputs))
        self._targets.append(targets)

    def compute(self) -> dict[str, float]:
        """Return the metrics by name; NaN where the network's outputs are not finite.

        A metric that is not defined for these images is NaN, too.
        """
        values, targets = self.gather().values()
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
        joined = {"values": join_padded(self._values), "targets": join_padded(self._targets)}
        if self._context is None:
            return joined
        return {name: self._context.gather(tensor) for name, tensor in joined.items()}

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Add images that `gather` has returned; one worker does so for all."""
        self._values.append(tensors["values"].to(device))
        self._targets.append(tensors["targets"].to(device))
