"""The workers that train together, as each of them sees the others.

A context is what Ray Train started, or a process alone, as a trial of a tuning is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eagleray.training.spec import TrainSpec

__all__ = ["DistributedContext", "join_process_group", "single_process"]


@dataclass(frozen=True)
class DistributedContext:
    """A worker's place among the others.

    Attributes:
        rank: From 0.
        size: Workers.
        local_rank: Among those of this node.
        local_world_size: Workers of this node.
        device: What this worker computes on.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one worker that writes and reports."""
        return self.rank == 0

    @property
    def num_cores(self) -> int:
        """Cores of the node that are this worker's share."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        return max(1, (usable or os.cpu_count() or 1) // self.local_world_size)

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def all_reduce(self, value: Tensor) -> Tensor:
        """Add a tensor up over all workers, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(value)
        return value

    def broadcast(self, value: Any) -> Any:
        """Return what the leader has, at every worker."""
        if self.world_size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def average_buffers(self, module: nn.Module) -> None:
        """Make the statistics of normalisation the mean over the workers, which drift apart."""
        if self.world_size == 1:
            return
        buffers = [item for item in module.buffers() if item.is_floating_point()]
        if not buffers:
            return
        flat = self.all_reduce(torch.cat([item.flatten() for item in buffers])).div_(
            self.world_size
        )
        means = torch.split(flat, [item.numel() for item in buffers])
        for item, mean in zip(buffers, means, strict=True):
            item.copy_(mean.view_as(item))

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return a network whose gradients are averaged over the workers.

        Frozen parameters do not take part, so it is wrapped anew when that changes.
        """
        if self.world_size == 1:
            return network
        return nn.parallel.DistributedDataParallel(
            network,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,  # they are averaged where they are used
            gradient_as_bucket_view=True,
        )


def join_process_group() -> DistributedContext:
    """Take this worker's place in the group that Ray Train has started, with its share of cores."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    context = DistributedContext(
        context.get_world_rank(),
        context.get_world_size(),
        context.get_local_rank(),
        context.get_local_world_size(),
        device,
    )
    if device.type == "cpu":
        torch.set_num_threads(context.num_cores)
    return context


def single_process(spec: TrainSpec) -> DistributedContext:
    """Return the context of one process."""
    use_gpu = spec.device != "cpu" and torch.cuda.is_available()
    return DistributedContext(0, 1, 0, 1, torch.device("cuda" if use_gpu else "cpu"))
