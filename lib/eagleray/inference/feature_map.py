"""Finds the last feature map of a network: the last output that has places, before the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eagleray.core.errors import InputError
from eagleray.models.architectures import Architecture
from eagleray.models.building import find_head

__all__ = ["FeatureLayer", "find_feature_layer"]

_MIN_TOLERANCE = 3.0  # cells; convolutions without padding cut the same off both sides
_TOLERANCE = 0.25  # of the cells


@dataclass(frozen=True)
class FeatureLayer:
    """The layer of a network whose output is its last feature map.

    Attributes:
        path: Name of the layer in the module.
        channels_last: Whether the map is (N, h, w, C) and not (N, C, h, w).
    """

    path: str
    channels_last: bool = False

    def as_map(self, output: Tensor) -> Tensor:
        """Return an output of the layer as (N, C, h, w)."""
        return output.permute(0, 3, 1, 2) if self.channels_last else output


def find_feature_layer(
    module: nn.Module, architecture: Architecture, inputs: Sequence[Tensor]
) -> FeatureLayer:
    """Find the last layer before the head whose output is a map with more than one place.

    Args:
        module: Network with the architecture's head, in evaluation mode.
        architecture: Architecture of the network.
        inputs: Normalised images (N, C, H, W), and attributes (N, A) if the network takes any; only
            their shapes matter.

    Raises:
        InputError: If there is none, or what follows it are tokens, as in a vision transformer.
    """
    head = module.get_submodule(find_head(module, architecture.num_outputs))
    height, width = inputs[0].shape[2:]
    search = _Search(height, width)
    hooks = [
        layer.register_forward_hook(partial(search.record, path))
        for path, layer in module.named_modules()
        if path
    ]
    hooks.append(head.register_forward_pre_hook(search.reach_head))
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if search.found is None:
        raise InputError(
            f"{architecture.name} has no layer before its last one whose output has places, so "
            "nothing can be said of places in an image."
        )
    if search.has_tokens:
        raise InputError(
            f"{architecture.name} passes tokens to its last layer, as vision transformers do, and "
            "explanations need a feature map; use a convolutional network or a Swin transformer."
        )
    return search.found


class _Search:
    """Notes the feature maps of a forward pass until the head is reached."""

    def __init__(self, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._reached = False
        self.found: FeatureLayer | None = None
        self.has_tokens = False

    def reach_head(self, *_: Any) -> None:
        self._reached = True

    def record(self, path: str, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        if self._reached or not isinstance(output, Tensor):
            return
        if output.ndim == 3 and min(output.shape[1:]) > 1:
            self.has_tokens = True
        if output.ndim != 4:
            return
        _, first, second, third = output.shape
        if self._is_grid(second, third):
            self.found, self.has_tokens = FeatureLayer(path), False
        elif self._is_grid(first, second):
            self.found, self.has_tokens = FeatureLayer(path, channels_last=True), False

    def _is_grid(self, rows: int, columns: int) -> bool:
        """Whether an output of this size may be a grid of places in the input."""
        if rows * columns == 1 or rows > self._height or columns > self._width:
            return False
        expected = rows * self._width / self._height
        return abs(columns - expected) <= max(_MIN_TOLERANCE, _TOLERANCE * expected)
