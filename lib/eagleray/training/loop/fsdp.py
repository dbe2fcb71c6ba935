"""Fully sharded data parallelism (FSDP): each worker holds a shard of every tensor.

Checkpoints contain full tensors either way, so a run can be resumed under any strategy and on any
number of workers. PyTorch's own modules for it take a second to import, which only a run that
shards its network waits for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eagleray.training.loop.distributed import DistributedContext
from eagleray.training.loop.stages import Stage

__all__ = ["full_tensor", "load_full_state", "placed_like", "shard"]


def shard(
    network: nn.Module, module: nn.Module, stages: Sequence[Stage], context: DistributedContext
) -> None:
    """Shard a network in place; weights are gathered stage by stage in a pass.

    Args:
        network: Network that is called; it contains `module`.
        module: Module that the stages refer to.
        stages: Stages of the module; each is gathered as one.
        context: Distributed context whose workers share the network.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(context.device.type, (context.world_size,))
    for stage in stages:
        fully_shard([module.get_submodule(name) for name in stage.modules], mesh=mesh)
    fully_shard(network, mesh=mesh)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; every worker has to call it."""
    full: Tensor = tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Shard a full tensor as another one of its shape is sharded."""
    if not _is_sharded(other) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


def _is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`."""
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def load_full_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load full tensors into a network, sharded or not."""
    state: dict[str, Any] = module.state_dict()
    assert set(state) == set(tensors)
    for name, target in state.items():
        target.copy_(placed_like(tensors[name], target))
