"""The classifier that a composed network is built on, and its feature maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Backbone", "FeatureLevel"]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A classifier whose feature maps are used; equal to others of its name and its channels.

    Attributes:
        name: Name of the classifier's architecture.
        in_channels: Number of channels of the input tensor.
        is_of_timm: Whether timm builds it, which then knows how to trace it.
        build: Returns the classifier with random weights; `initialize=False` skips slow
            initialisers, for weights that are loaded next.
    """

    name: str
    in_channels: int
    is_of_timm: bool = field(compare=False)
    build: Callable[..., nn.Module] = field(compare=False)


@dataclass(frozen=True, slots=True)
class FeatureLevel:
    """A feature map of a network.

    Attributes:
        layer: Name of the layer that returns it.
        channels: Number of channels.
        stride: Pixels of the input for a place of the map, in each direction.
    """

    layer: str
    channels: int
    stride: int
