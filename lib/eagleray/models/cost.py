"""Counts the multiply-adds and the parameters of a network, without computing anything.

    cost = manifest_cost(manifest)
    cost.multiply_adds, cost.parameters        # 1,813,566,464 and 11,689,512 for resnet18 at 224

A multiply-add is one multiplication with one addition, as papers and torchvision count them;
convolutions, matrix products and attention count, and all else is left out.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from eagleray.models.architectures import Architecture
from eagleray.models.building import build_on_meta
from eagleray.models.manifest import ModelManifest

__all__ = ["ModelCost", "manifest_cost", "model_cost"]


@dataclass(frozen=True, slots=True)
class ModelCost:
    """The cost of a network.

    Attributes:
        multiply_adds: Number of multiply-adds for one image; None if the network cannot be traced.
        parameters: Number of trained numbers; None for a network that another server runs.
    """

    multiply_adds: int | None
    parameters: int | None


def manifest_cost(manifest: ModelManifest) -> ModelCost:
    """Count the multiply-adds of a model's network for one image, and its parameters.

    Those of an imported graph are recorded: its multiply-adds are not known. Nothing is known of a
    network that another server runs.

    Raises:
        UserError: If there is no such architecture, or it cannot have the recorded channels.
    """
    if manifest.imported is not None:
        return ModelCost(None, manifest.imported.num_parameters)
    if manifest.hosted is not None:
        return ModelCost(None, None)
    return model_cost(manifest.architecture, manifest.contract.size)


def model_cost(architecture: Architecture, size: tuple[int, int]) -> ModelCost:
    """Count the multiply-adds of a network for one image, and its parameters.

    Args:
        architecture: What to count.
        size: (height, width) of the input.

    Raises:
        UserError: If there is no such architecture, or it cannot have the recorded channels.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    module = build_on_meta(architecture)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    inputs = [torch.zeros(1, architecture.in_channels, *size, device="meta")]
    if architecture.num_attributes:
        inputs.append(torch.zeros(1, architecture.num_attributes, device="meta"))
    # Gradients stay enabled: without them attention takes a fused path that the counter misses.
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter("ignore")
        try:
            module(*inputs)
        except (RuntimeError, TypeError, ValueError, AssertionError):  # it may read values
            return ModelCost(None, parameters)
    return ModelCost(counter.get_total_flops() // 2, parameters)
