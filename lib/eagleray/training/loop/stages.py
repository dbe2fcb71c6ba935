"""The stages of a network from the input to the head, for freezing and layer-wise learning rates.

A stage is a module that the network names (a ResNet's `layer2`, one convolution of a VGG's
`features`), with the normalisation that follows it. The head is the last stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from eagleray.core.errors import InputError
from eagleray.models.building import find_head
from eagleray.models.networks.head import NetworkWithAttributes
from eagleray.training.spec import TrainSpec

__all__ = ["Stage", "freeze_stages", "num_frozen_stages", "require_freezable", "stages_of"]

_NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Stage:
    """A part of a network that is frozen or trained as one.

    Attributes:
        name: Name of the first module.
        modules: Names of the modules.
        parameters: Names of the parameters.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


def stages_of(module: nn.Module, num_outputs: int) -> tuple[Stage, ...]:
    """Divide a network into stages; its head, which has `num_outputs`, is the last one."""
    head = find_head(module, num_outputs)
    names = [name for name in _stage_modules(module, head) if name != head]
    groups: list[list[str]] = []
    for name in names:
        if groups and _is_normalisation(module.get_submodule(name)):
            groups[-1].append(name)
        else:
            groups.append([name])
    groups.append([head])
    owners = {name: index for index, group in enumerate(groups) for name in group}
    parameters: list[list[str]] = [[] for _ in groups]
    for name, _ in module.named_parameters():
        # Parameters outside of all modules, such as a class token, belong to the first stage.
        parameters[_owner(name, owners)].append(name)
    return tuple(
        Stage(group[0], tuple(group), tuple(names))
        for group, names in zip(groups, parameters, strict=True)
    )


def _stage_modules(module: nn.Module, head: str) -> list[str]:
    """Return the names of modules in order; those with the head or most layers are opened."""
    places = [head]
    if isinstance(module, NetworkWithAttributes):
        places.append(f"backbone.{module.place}")
    num_layers = _count_layers(module) - _count_layers(module.get_submodule(head)) + 1
    names = [name for name, child in module.named_children() if _count_layers(child)]
    position = 0
    while position < len(names):
        name = names[position]
        child = module.get_submodule(name)
        inner = [f"{name}.{key}" for key, item in child.named_children() if _count_layers(item)]
        holds_head = any(place.startswith(f"{name}.") for place in places)
        if (
            name != head
            and inner
            and (holds_head or (_count_layers(child) > num_layers / 2 and len(inner) > 1))
        ):
            names[position : position + 1] = inner
        else:
            position += 1
    return names


def _count_layers(module: nn.Module) -> int:
    return sum(any(True for _ in item.parameters(recurse=False)) for item in module.modules())


def _is_normalisation(module: nn.Module) -> bool:
    return isinstance(module, _NORMALISATION)


def _owner(parameter: str, owners: dict[str, int]) -> int:
    path = parameter
    while path:
        path = path.rpartition(".")[0]
        if path in owners:
            return owners[path]
    return 0


def require_freezable(spec: TrainSpec, stages: tuple[Stage, ...]) -> None:
    """Check that a network has the stages to freeze and to unfreeze.

    Raises:
        InputError: If it has fewer; the message names them.
    """
    depth = len(stages) - 1
    frozen = depth if spec.frozen_stages is None else spec.frozen_stages
    if frozen > depth:
        names = ", ".join(stage.name for stage in stages[:-1])
        raise InputError(
            f"{spec.name_of('freeze')} {frozen}: the network has {depth} stages before its head "
            f"({names}); freeze fewer, or `backbone` for all."
        )
    for step in spec.unfreeze_steps:
        if frozen == 0 or (step.stages or 0) > frozen:
            raise InputError(
                f"{spec.name_of('unfreeze')} {step.epoch}:{step.stages or 'all'}: only {frozen} "
                "stages are still frozen at that time."
            )
        frozen = 0 if step.stages is None else frozen - step.stages


def num_frozen_stages(spec: TrainSpec, num_stages: int, epoch: int) -> int:
    """Return the number of first stages that are frozen after `epoch` finished epochs."""
    frozen = num_stages - 1 if spec.frozen_stages is None else spec.frozen_stages
    for step in spec.unfreeze_steps:
        if epoch >= step.epoch:
            frozen = 0 if step.stages is None else frozen - step.stages
    return frozen


def freeze_stages(module: nn.Module, stages: tuple[Stage, ...], num_frozen: int) -> None:
    """Freeze the first stages, including their normalisation statistics, and unfreeze the others.

    Call it after `module.train()`, which sets all modules to training mode.
    """
    parameters = dict(module.named_parameters())
    for index, stage in enumerate(stages):
        is_trained = index >= num_frozen
        for name in stage.parameters:
            parameters[name].requires_grad_(is_trained)
        if not is_trained:
            for name in stage.modules:
                module.get_submodule(name).eval()
