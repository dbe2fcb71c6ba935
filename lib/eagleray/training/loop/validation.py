"""Validation at the end of an epoch: loss and metrics, computed by all workers together."""

from __future__ import annotations

import torch

from eagleray.training.loop.batches import ImageDataset
from eagleray.training.loop.distributed import DistributedContext
from eagleray.training.loop.metrics import TaskMetrics
from eagleray.training.loop.model_state import ModelState
from eagleray.training.monitor import LOSS
from eagleray.training.worker_input import WorkerInput

__all__ = ["validate"]


@torch.no_grad()
def validate(
    model: ModelState, dataset: ImageDataset, worker_input: WorkerInput, context: DistributedContext
) -> dict[str, float]:
    """Return `validation_loss`, the task's metrics and the monitored one over the split.

    The loss is the task's default without weights and label smoothing, whatever a run minimises,
    so that runs can be compared by it.

    Args:
        model: Network to validate.
        dataset: Validation split.
        worker_input: Input of the worker.
        context: Distributed context; each worker computes a share of the images.
    """
    task, spec, size = worker_input.task, worker_input.spec, worker_input.contract.size
    network = model.evaluation_network()
    rows = dataset.decoded.good
    count = max(1, spec.batch_size // context.world_size // spec.gradient_accumulation_steps)
    num_passes = -(-len(rows) // count)
    if len(rows) >= context.world_size:  # with fewer images each worker computes all of them
        num_passes = -(-len(rows) // (context.world_size * count))
        rows = rows[context.rank :: context.world_size]
    name = worker_input.monitor.name
    metrics = TaskMetrics(
        task,
        extra=None if name == LOSS else name,
        choose_thresholds=spec.thresholds == "f1" and "thresholds" in task.fitted,
        context=context,
    )
    loss = torch.zeros(2, device=context.device)  # its sum over the images, and their number
    for number in range(num_passes):
        batch = rows[number * count : (number + 1) * count]
        if not len(batch):  # sharded weights are gathered by all workers in every pass
            network(*dataset.inputs(rows[:1], size, context.device))
            continue
        targets = dataset.targets[batch].to(context.device)
        logits = network(*dataset.inputs(batch, size, context.device))
        loss += torch.stack(
            [task.loss(logits, targets) * len(targets), loss.new_tensor(len(targets))]
        )
        metrics.update(task.activate(logits), targets)
    values = {f"validation_{name}": value for name, value in metrics.compute().items()}
    total, num_images = context.all_reduce(loss).tolist()
    return {"validation_loss": total / num_images, **values}
