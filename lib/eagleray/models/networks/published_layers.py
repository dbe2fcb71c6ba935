"""What the networks of torchvision with published weights share: labels, anchors and edges.

Parameters keep the names that torchvision gives them, so that published weights load unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList

from eagleray.models.networks.anchors import rows_of

__all__ = [
    "FixedNormalization",
    "LabelConvolution",
    "LabelRows",
    "build_torchvision",
    "default_boxes",
    "level_anchors",
    "pad_images",
]

_COCO_ROWS = 91
_COCO_RANGES = ((1, 12), (13, 26), (27, 29), (31, 45), (46, 66), (67, 68), (70, 71), (72, 83),
                (84, 91))  # fmt: skip
_NUM_COCO = sum(stop - start for start, stop in _COCO_RANGES)
_MULTIPLE = 32  # of the sides that the pyramids of torchvision are made for
_PRIOR = math.log(0.01 / 0.99)  # logit of a label before training, as most anchors have no object


class LabelRows:
    """The rows of a network's scores, and which of them are labels.

    The first row is the background. COCO numbers its 80 labels up to 90, and the numbers without a
    label have rows too, which are not used. Other labels follow each other.

    Args:
        num_labels: Number of labels; 80 are those of COCO.

    Attributes:
        count: Number of rows.
    """

    def __init__(self, num_labels: int) -> None:
        is_coco = num_labels == _NUM_COCO
        self.count = _COCO_ROWS if is_coco else 1 + num_labels
        self._ranges = _COCO_RANGES if is_coco else ((1, self.count),)

    def labels(self, scores: Tensor) -> Tensor:
        """Return the scores (…, num_labels) of the labels among those of all rows (…, count)."""
        return torch.cat([scores[..., start:stop] for start, stop in self._ranges], dim=-1)


class LabelConvolution(nn.Conv2d):
    """Scores the labels of all anchors of a place: the layer that other labels replace.

    Args:
        channels: Channels of the input.
        num_anchors: Number of anchors of a place.
        num_labels: Number of labels.
    """

    def __init__(self, channels: int, num_anchors: int, num_labels: int) -> None:
        rows = LabelRows(num_labels)
        super().__init__(channels, num_anchors * rows.count, kernel_size=3, padding=1)
        self.num_anchors, self.num_labels = num_anchors, num_labels
        self._rows = rows
        nn.init.normal_(self.weight, std=0.01)
        nn.init.constant_(cast("Tensor", self.bias), _PRIOR)

    def with_labels(self, num_labels: int) -> LabelConvolution:
        """Return a layer for other labels, with random weights."""
        return LabelConvolution(self.in_channels, self.num_anchors, num_labels)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, channels, h, w) to logits (N, h·w·num_anchors, num_labels)."""
        return self._rows.labels(rows_of(super().forward(features), self._rows.count))


class FixedNormalization(nn.Module):
    """A network whose batch normalisation keeps the statistics of its weights, also in training.

    So a batch of one image can be trained on, and the number of workers changes nothing.
    """

    def train(self, mode: bool = True) -> FixedNormalization:
        """Set the mode of all layers but those of batch normalisation."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self


def build_torchvision(name: str, num_rows: int) -> Any:
    """Build a network of torchvision with random weights.

    Batch normalisation is that of the published weights, whose `FrozenBatchNorm2d` is an ordinary
    one in evaluation mode.
    """
    import torchvision

    network: Any = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=num_rows
    )
    if name in _WITHOUT_EPSILON:
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0
    return network


_WITHOUT_EPSILON = {"retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn"}
"""Networks whose weights were made without the term that keeps variances from 0."""


def pad_images(images: Tensor) -> Tensor:
    """Fill images (N, C, H, W) up with zeros at the right and the bottom to multiples of 32."""
    height, width = images.shape[2:]
    return functional.pad(images, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE))


def level_anchors(generator: Any, images: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
    """Return the anchors of each feature map (A, 4), as torchvision's generator places them.

    Args:
        generator: An `AnchorGenerator` of torchvision.
        images: Padded images (N, C, H, W).
        levels: Feature maps (N, F, h, w).
    """
    height, width = images.shape[2:]
    sizes = [tuple(features.shape[2:]) for features in levels]
    strides = [(height // rows, width // columns) for rows, columns in sizes]
    anchors = generator.grid_anchors(sizes, strides)
    return [one.to(images.device, torch.float32) for one in anchors]


def default_boxes(generator: Any, images: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """Return the anchors of all feature maps (A, 4), by a `DefaultBoxGenerator` of torchvision."""
    size = (images.shape[2], images.shape[3])
    boxes: Tensor = generator(ImageList(images, [size]), list(levels))[0]
    return boxes.float()
