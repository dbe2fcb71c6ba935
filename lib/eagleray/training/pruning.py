"""Structured pruning: removes the channels that matter least from a network, before fine-tuning.

Channels that depend on each other, as through a residual connection, are removed together; DepGraph
finds them (Fang et al. 2023, "Towards Any Structural Pruning"), in the library torch-pruning.
Importance is the L2 norm of a channel's weights over all layers of its group.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from eagleray.core.errors import InputError, PackageError
from eagleray.models.architectures import Architecture
from eagleray.models.building import build, find_head
from eagleray.models.cost import model_cost
from eagleray.models.networks.channels import NARROWABLE, channels_of

__all__ = ["Pruned", "prune"]

_STEPS = 100
"""Number of steps from all channels to none; the last one decides how far the share is exceeded."""
_MAX_CHANNELS = 0.9
"""Maximum share of the channels of a layer that are removed, so that no layer vanishes."""


@dataclass(frozen=True)
class Pruned:
    """A network with fewer channels.

    Attributes:
        module: The network.
        architecture: Its architecture, with the channels that are left.
        multiply_adds_before: Multiply-adds for an image before.
        multiply_adds: Multiply-adds for an image now.
    """

    module: nn.Module
    architecture: Architecture
    multiply_adds_before: int
    multiply_adds: int


def prune(
    module: nn.Module, architecture: Architecture, size: tuple[int, int], share: float
) -> Pruned:
    """Remove channels from a network, until a share of its multiply-adds is gone.

    The same weights give the same channels on every machine: importance is computed in float64, so
    that the order of sums decides nothing.

    Args:
        module: Network with its weights, which is changed.
        architecture: Architecture of the network.
        size: (height, width) of the input.
        share: Share of the multiply-adds to remove, above 0 and below 1.

    Raises:
        InputError: If the network cannot be pruned, or not so far.
    """
    _require_prunable(module, architecture)
    before = model_cost(architecture, size).multiply_adds
    if before is None:
        raise _refusal(architecture, "its multiply-adds cannot be counted")
    original = build(architecture.model_copy(update={"channels": {}}), initialize=False)
    module.double().eval()
    inputs = [torch.zeros(2, architecture.in_channels, *size, dtype=torch.float64)]
    if architecture.num_attributes:
        inputs.append(torch.zeros(2, architecture.num_attributes, dtype=torch.float64))
    pruner = _pruner(module, inputs, architecture)
    target, now = before * (1 - share), before
    while now > target:
        if pruner.current_step >= _STEPS - 1:
            raise _refusal(
                architecture, f"only {1 - now / before:.0%} of its multiply-adds can be removed"
            )
        _step(pruner, architecture)
        architecture = architecture.model_copy(update={"channels": channels_of(module, original)})
        now = _multiply_adds(architecture, size)
    _require_rebuilt(module, architecture, inputs)
    return Pruned(module.float().train(), architecture, before, now)


def _require_prunable(module: nn.Module, architecture: Architecture) -> None:
    for name, layer in module.named_modules():
        own = any(True for _ in layer.parameters(recurse=False))
        if own and not isinstance(layer, NARROWABLE):
            kind = type(layer).__name__
            why = f"its {name} is a {kind}" if name else "it has parameters outside of its layers"
            raise _refusal(architecture, why)


def _pruner(module: nn.Module, inputs: list[torch.Tensor], architecture: Architecture) -> Any:
    import torch_pruning

    head = module.get_submodule(find_head(module, architecture.num_outputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch_pruning.pruner.BasePruner(
                module,
                tuple(inputs) if len(inputs) > 1 else inputs[0],
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=1.0,
                max_pruning_ratio=_MAX_CHANNELS,
                iterative_steps=_STEPS,
                global_pruning=True,
                ignored_layers=[head],
            )
        except Exception as error:
            raise _refusal(architecture, _first_line(error)) from error


def _step(pruner: Any, architecture: Architecture) -> None:
    try:
        pruner.step()
    except Exception as error:
        raise _refusal(architecture, _first_line(error)) from error


def _multiply_adds(architecture: Architecture, size: tuple[int, int]) -> int:
    try:
        found = model_cost(architecture, size).multiply_adds
    except PackageError as error:
        raise _refusal(architecture, str(error)) from error
    if found is None:
        raise _refusal(architecture, "its layers do not fit each other any more")
    return found


def _require_rebuilt(
    module: nn.Module, architecture: Architecture, inputs: list[torch.Tensor]
) -> None:
    """Require that the network, rebuilt by its channels, computes what the pruned one does."""
    rebuilt = build(architecture, initialize=False).double().eval()
    try:
        rebuilt.load_state_dict(module.state_dict())
        with torch.no_grad():
            same = torch.equal(rebuilt(*inputs), module(*inputs))
    except RuntimeError as error:
        raise _refusal(architecture, _first_line(error)) from error
    if not same:
        raise _refusal(architecture, "the channels of its layers do not describe it")


def _refusal(architecture: Architecture, why: str) -> InputError:
    return InputError(
        f"{architecture.name} cannot be pruned ({why.rstrip('.')}); networks of "
        "convolutions, linear layers and batch normalisation can. Choose another parent, or prune "
        "less."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
