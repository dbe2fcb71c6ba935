"""A head that sees an image's attributes beside its features, and the network that has it.

NetworkWithAttributes
    backbone    a network whose last layer is left away: images -> features (N, F)
    head        features, attributes (N, A) -> outputs
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["HeadWithAttributes", "MovedHead", "NetworkWithAttributes"]

_WIDTH = 128  # of the layer in which features and attributes meet


class HeadWithAttributes(nn.Module):
    """A linear head, and beside it a small perceptron in which attributes change what it says.

    A linear layer over both could only add something for each attribute; what an attribute says
    often depends on what is seen. The perceptron begins by adding nothing, so a head that has
    learned without attributes goes on from what it knows.

    Args:
        linear: The head without attributes.
        num_attributes: Length of an image's attributes.
    """

    def __init__(self, linear: nn.Linear, num_attributes: int) -> None:
        super().__init__()
        self.linear = linear
        # A layer for each, as attributes are few and would drown among the features.
        self.features = nn.Linear(linear.in_features, _WIDTH)
        self.attributes = nn.Linear(num_attributes, _WIDTH, bias=False)
        self.answer = nn.Linear(_WIDTH, linear.out_features, bias=False)
        nn.init.zeros_(self.answer.weight)

    def forward(self, features: Tensor, attributes: Tensor) -> Tensor:
        """Map features (N, F) and attributes (N, A) to outputs (N, num_outputs)."""
        hidden = functional.relu(self.features(features) + self.attributes(attributes))
        return cast("Tensor", self.linear(features) + self.answer(hidden))


class MovedHead(nn.Identity):
    """The place in a backbone where its head was."""


class NetworkWithAttributes(nn.Module):
    """A network of images and their attributes.

    Args:
        backbone: Maps images to features (N, F); it has a `MovedHead`.
        head: Takes these.
    """

    def __init__(self, backbone: nn.Module, head: HeadWithAttributes) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    @property
    def place(self) -> str:
        """Name of the layer of the backbone in whose place the head was."""
        layers = dict(self.backbone.named_modules())
        (path,) = (str(name) for name, layer in layers.items() if isinstance(layer, MovedHead))
        return path

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Map images (N, C, H, W) and attributes (N, A) to outputs (N, num_outputs)."""
        return cast("Tensor", self.head(self.backbone(images), attributes))
