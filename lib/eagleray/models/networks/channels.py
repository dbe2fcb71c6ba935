"""Narrows the layers of a network to recorded channel counts, as pruning leaves them.

    channels = channels_of(pruned, build(architecture))    # {"layer1.0.conv1": (64, 45), …}
    narrow(build(architecture), channels)                  # a network of the pruned one's shapes

A network of fewer channels is an architecture with the counts that differ, so that a package needs
no code to rebuild it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["NARROWABLE", "channels_of", "narrow"]

NARROWABLE = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
"""The layers that may have fewer channels than the architecture says."""


def channels_of(module: nn.Module, original: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the input and output channels of each layer that is narrower than in the original.

    Args:
        module: Network, of which some layers may have fewer channels.
        original: Network of the same architecture with all channels.
    """
    layers = dict(original.named_modules())
    return {
        name: _widths(layer)
        for name, layer in module.named_modules()
        if isinstance(layer, NARROWABLE) and _widths(layer) != _widths(layers[name])
    }


def narrow(module: nn.Module, channels: Mapping[str, tuple[int, int]]) -> None:
    """Reduce layers of a network in place to their first channels.

    Args:
        module: Network with all channels, on any device.
        channels: Input and output channels of each layer by its name.

    Raises:
        ValueError: If there is no such layer, or it cannot have these channels.
    """
    layers = dict(module.named_modules())
    for name, (inputs, outputs) in channels.items():
        layer = layers.get(name)
        if not isinstance(layer, NARROWABLE):
            raise ValueError(f"it has no layer {name[:100]!r} whose channels can be reduced")
        widths = _widths(layer)
        if not (0 < inputs <= widths[0] and 0 < outputs <= widths[1]):
            raise ValueError(
                f"{name!r} has {widths[0]} input and {widths[1]} output channels, which cannot be "
                f"reduced to {inputs} and {outputs}"
            )
        _narrow_layer(name, layer, inputs, outputs)


def _widths(layer: nn.Module) -> tuple[int, int]:
    """Return the input and output channels of a layer; those of a normalisation are the same."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    return layer.num_features, layer.num_features


def _narrow_layer(name: str, layer: nn.Module, inputs: int, outputs: int) -> None:
    fan_in = inputs
    if isinstance(layer, nn.Conv2d):
        is_depthwise = layer.groups == layer.in_channels
        layer.groups = inputs if is_depthwise else layer.groups
        if inputs % layer.groups or outputs % layer.groups:
            raise ValueError(
                f"{name!r} has {layer.groups} groups, which {inputs} input and {outputs} output "
                "channels cannot be divided into"
            )
        layer.in_channels, layer.out_channels = inputs, outputs
        fan_in = inputs // layer.groups
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, outputs
    else:
        assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
        if inputs != outputs:
            raise ValueError(f"{name!r} is a normalisation, which has as many inputs as outputs")
        layer.num_features = outputs
    for key, parameter in list(layer.named_parameters(recurse=False)):
        shorter = _shorten(parameter, outputs, fan_in)
        setattr(layer, key, nn.Parameter(shorter, requires_grad=parameter.requires_grad))
    for key, buffer in list(layer.named_buffers(recurse=False)):
        if buffer.ndim:
            setattr(layer, key, _shorten(buffer, outputs, fan_in))


def _shorten(tensor: Tensor, outputs: int, inputs: int) -> Tensor:
    """Return the first outputs of a tensor, and of these the first inputs if it has any."""
    shorter = tensor.detach()[:outputs]
    return (shorter[:, :inputs] if tensor.ndim > 1 else shorter).clone()
