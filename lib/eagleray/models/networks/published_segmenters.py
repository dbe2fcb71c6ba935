"""Segmentation networks of torchvision, whose published weights find the labels of Pascal VOC."""

from __future__ import annotations

from torch import Tensor

from eagleray.models.networks.layers import enlarge
from eagleray.models.networks.published_layers import FixedNormalization, build_torchvision

__all__ = ["PublishedSegmenter"]


class PublishedSegmenter(FixedNormalization):
    """A fully convolutional network, a DeepLabv3 or an LR-ASPP, without an auxiliary head.

    Args:
        name: Name of the network.
        num_labels: Number of labels.
    """

    def __init__(self, name: str, num_labels: int) -> None:
        super().__init__()
        network = build_torchvision(name, num_labels)
        self.backbone = network.backbone
        self.classifier = network.classifier
        self._takes_all = name.startswith("lraspp")

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_labels, H, W)."""
        maps = self.backbone(images)
        logits: Tensor = self.classifier(maps if self._takes_all else maps["out"])
        return enlarge(logits, images)
