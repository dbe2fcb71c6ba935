"""A small detector without anchors, on the feature maps of any convolutional classifier.

Every point of three feature maps predicts the box of one object, relative to the point and in units
of the map's stride, and a logit for each label. A feature pyramid (Lin et al. 2017, "Feature
Pyramid Networks for Object Detection") brings what the deep maps know to the large ones; the layers
that predict are the same for all maps. Normalisation is by groups of channels, which does not
depend on what shares a batch, nor on the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from eagleray.models.networks.backbone import FeatureLevel
from eagleray.models.networks.layers import convolutions, group_norm, points_of

__all__ = ["Detector"]

_WIDTH = 96
_DEPTH = 2  # convolutions before each prediction
_PRIOR = -4.6  # logit of a label before training: 1 %, as most points have no object
_SIDE = 4.0  # side of a box before training, in strides
_MAX_LOG_SIDE = 8.0  # keeps boxes finite


class Detector(nn.Module):
    """A dense detector.

    Args:
        backbone: Maps images to feature maps by layer.
        levels: The feature maps to use, the largest first.
        num_labels: Number of labels.
    """

    def __init__(
        self, backbone: nn.Module, levels: Sequence[FeatureLevel], num_labels: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = FeaturePyramidNetwork(
            [level.channels for level in levels], _WIDTH, norm_layer=group_norm
        )
        self.head = _Head(num_labels)
        self._layers = [level.layer for level in levels]
        self._strides = [level.stride for level in levels]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict at every point of the feature maps.

        Args:
            images: Normalised images (N, C, H, W).

        Returns:
            `boxes` (N, A, 4) as x1, y1, x2, y2 in pixels of the input, `logits` (N, A, num_labels),
            and `points` (N, A, 3): x, y and stride of the point of each.
        """
        maps = self.backbone(images)
        pyramid = self.neck({layer: maps[layer] for layer in self._layers})
        boxes, logits, points = [], [], []
        for stride, features in zip(self._strides, pyramid.values(), strict=True):
            places, scores = self.head(features)
            own = points_of(features, stride)
            boxes.append(_decode(places.float(), own))
            logits.append(scores.float())
            points.append(own)
        return {
            "boxes": torch.cat(boxes, dim=1),
            "logits": torch.cat(logits, dim=1),
            "points": torch.cat(points).expand(images.shape[0], -1, -1),
        }


class _Head(nn.Module):
    """Predicts a box and the labels of every point of a feature map."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.box_tower = convolutions(_WIDTH, _WIDTH, _DEPTH)
        self.label_tower = convolutions(_WIDTH, _WIDTH, _DEPTH)
        # The labels come last: the last layer of a network is what another set of labels replaces.
        self.boxes = nn.Conv2d(_WIDTH, 4, kernel_size=1)
        self.labels = nn.Conv2d(_WIDTH, num_labels, kernel_size=1)
        for layer in (self.boxes, self.labels):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(cast("Tensor", layer.bias))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (N, F, h, w) to raw boxes (N, h·w, 4) and logits (N, h·w, num_labels)."""
        boxes = self.boxes(self.box_tower(features)).flatten(2).transpose(1, 2)
        logits = self.labels(self.label_tower(features)).flatten(2).transpose(1, 2)
        return boxes, logits + _PRIOR


def _decode(raw: Tensor, points: Tensor) -> Tensor:
    """Return boxes (N, A, 4) as x1, y1, x2, y2 from raw outputs (N, A, 4)."""
    place, stride = points[:, :2], points[:, 2:]
    centres = place + raw[..., :2] * stride
    halves = raw[..., 2:].clamp(max=_MAX_LOG_SIDE).exp() * stride * (_SIDE / 2)
    return torch.cat([centres - halves, centres + halves], dim=2)
