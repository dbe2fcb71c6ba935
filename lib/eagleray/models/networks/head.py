"""A head that combines image features with attributes, and the network around it.

NetworkWithAttributes
    backbone    a network without its last layer: images -> features (N, F)
    head        features, attributes (N, A) -> outputs
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["HeadWithAttributes", "MovedHead", "NetworkWithAttributes"]

_WIDTH = 128  # of the hidden layer that combines features and attributes


class HeadWithAttributes(nn.Module):
    """A linear head plus a small perceptron over features and attributes.

    A linear layer over both could only add a constant for each attribute, while the effect of an
    attribute often depends on the image. The output of the perceptron starts at zero, so that a
    head trained without attributes keeps its predictions at first.

    Args:
        linear: The head without attributes.
        num_attributes: Length of an image's attribute vector.
    """

    def __init__(self, linear: nn.Linear, num_attributes: int) -> None:
        super().__init__()
        self.linear = linear
        # One layer for each, since the few attributes would be lost among the features.
        self.features = nn.Linear(linear.in_features, _WIDTH)
        self.attributes = nn.Linear(num_attributes, _WIDTH, bias=False)
        self.answer = nn.Linear(_WIDTH, linear.out_features, bias=False)
        nn.init.zeros_(self.answer.weight)

    def forward(self, features: Tensor, attributes: Tensor) -> Tensor:
        """Map features (N, F) and attributes (N, A) to outputs (N, num_outputs)."""
        hidden = functional.relu(self.features(features) + self.attributes(attributes))
        return cast("Tensor", self.linear(features) + self.answer(hidden))


class MovedHead(nn.Identity):
    """Marks the layer of a backbone that the head was taken from."""


class NetworkWithAttributes(nn.Module):
    """A network of images and their attributes.

    Args:
        backbone: Network from images to features (N, F), with a `MovedHead`.
        head: Head from features and attributes to outputs.
    """

    def __init__(self, backbone: nn.Module, head: HeadWithAttributes) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    @property
    def place(self) -> str:
        """Name of the backbone's layer that the head was taken from."""
        layers = dict(self.backbone.named_modules())
        (path,) = (str(name) for name, layer in layers.items() if isinstance(layer, MovedHead))
        return path

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Map images (N, C, H, W) and attributes (N, A) to outputs (N, num_outputs)."""
        return cast("Tensor", self.head(self.backbone(images), attributes))
