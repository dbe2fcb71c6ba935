"""The distributed context of a worker: its rank and the collective operations.

A context is that of a worker that Ray Train started, or of a single process, as in a tuning trial.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eagleray.tasks.padding import join_padded
from eagleray.training.spec import TrainSpec

__all__ = ["DistributedContext", "join_process_group", "single_process"]


@dataclass(frozen=True)
class DistributedContext:
    """A worker's place in the process group.

    Attributes:
        rank: Rank of the worker, from 0.
        world_size: Number of workers.
        local_rank: Rank among the workers of the node.
        local_world_size: Number of workers of the node.
        device: Device of the worker.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        """Whether this is the worker that writes and reports."""
        return self.rank == 0

    @property
    def num_cores(self) -> int:
        """Number of the node's cores that are this worker's share."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        return max(1, (usable or os.cpu_count() or 1) // self.local_world_size)

    def barrier(self) -> None:
        """Wait until every worker has reached this point."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum a tensor over all workers, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(value)
        return value

    def broadcast(self, value: Any) -> Any:
        """Return the main process's object on every worker."""
        if self.world_size == 1:
            return value
        objects = [value]
        torch.distributed.broadcast_object_list(objects, src=0)
        return objects[0]

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all workers, joined along the first axis in the order of ranks.

        Those of detections and objects are filled up with zeros, see `join_padded`.
        """
        if self.world_size == 1:
            return tensor
        parts: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(parts, tensor.cpu())  # their lengths may differ
        return join_padded(parts).to(tensor.device)

    def average_buffers(self, module: nn.Module) -> None:
        """Average the statistics of normalisation, which differ between workers."""
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
        """Return a network whose gradients are averaged over the workers (DDP).

        Frozen parameters do not take part, so a network is wrapped again when that changes.
        """
        if self.world_size == 1:
            return network
        return nn.parallel.DistributedDataParallel(
            network,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,  # `average_buffers` runs where they are used
            gradient_as_bucket_view=True,
        )


def join_process_group() -> DistributedContext:
    """Return the context of a Ray Train worker, and limit it to its share of the cores."""
    import ray.train
    import ray.train.torch

    ray_context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    context = DistributedContext(
        ray_context.get_world_rank(),
        ray_context.get_world_size(),
        ray_context.get_local_rank(),
        ray_context.get_local_world_size(),
        device,
    )
    if device.type == "cpu":
        torch.set_num_threads(context.num_cores)
    return context


def single_process(spec: TrainSpec) -> DistributedContext:
    """Return the context of a single process."""
    use_gpu = spec.device != "cpu" and torch.cuda.is_available()
    return DistributedContext(0, 1, 0, 1, torch.device("cuda" if use_gpu else "cpu"))
