"""Weights that the workers share out among them (FSDP): each keeps a part of every tensor.

Checkpoints hold whole tensors either way, so a run can be resumed with or without sharding, on any
number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from eagleray.training.distributed import DistributedContext
from eagleray.training.stages import Stage

__all__ = ["load_whole", "placed_like", "shard", "whole"]


def shard(
    network: nn.Module, module: nn.Module, stages: Sequence[Stage], context: DistributedContext
) -> None:
    """Share a network out, in place: stage by stage, as its stages are gathered for a pass.

    Args:
        network: What is called; it contains `module`.
        module: What has the stages.
        stages: Each is gathered as one.
        context: Whose workers share it.
    """
    mesh = init_device_mesh(context.device.type, (context.world_size,))
    for stage in stages:
        fully_shard([module.get_submodule(name) for name in stage.modules], mesh=mesh)
    fully_shard(network, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its parts; every worker has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return a whole tensor shared out as another one of its shape is."""
    if isinstance(model, DTensor) and tensor.shape == model.shape:
        return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
    return tensor


@torch.no_grad()
def load_whole(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a network, shared out or not."""
    state: dict[str, Any] = module.state_dict()
    assert set(state) == set(tensors)
    for name, target in state.items():
        target.copy_(placed_like(tensors[name], target))
