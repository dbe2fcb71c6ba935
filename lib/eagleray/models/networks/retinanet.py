"""RetinaNet: a detector with anchors, on the feature maps of any convolutional classifier.

Source: Lin et al. 2017, "Focal Loss for Dense Object Detection". Nine anchors at every place of
five feature maps have a logit for each label, and the differences of a box from the anchor. The
layer that scores the labels is split in two: one gives features of each anchor, the other one,
which all anchors share, scores them. So the last layer has one output for each label, and is all
that other labels replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from eagleray.models.networks.anchors import anchors_of, decode, rows_of, shape_anchors
from eagleray.models.networks.backbone import FeatureLevel
from eagleray.models.networks.layers import convolutions
from eagleray.models.networks.pyramid import Pyramid, pyramid_width

__all__ = ["RetinaNet"]

_DEPTH = 4  # convolutions before each prediction
_SIDE = 4.0  # of the smallest anchor of a place, in strides
_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
_RATIOS = (0.5, 1.0, 2.0)  # of height to width
_SHAPES = [shape for scale in _SCALES for shape in shape_anchors(_SIDE * scale, _RATIOS)]
_FEATURES = 64  # of an anchor, by which its labels are scored
_PRIOR = -4.6  # logit of a label before training: 1 %, as most anchors have no object


class RetinaNet(nn.Module):
    """A dense detector with anchors.

    Args:
        backbone: Maps images to feature maps by layer.
        levels: The three feature maps to use, the largest first.
        num_labels: Number of labels.
    """

    def __init__(
        self, backbone: nn.Module, levels: Sequence[FeatureLevel], num_labels: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        width = pyramid_width(levels)
        self.neck = Pyramid(levels, width)
        self.head = _Head(width, num_labels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict at every anchor.

        Args:
            images: Normalised images (N, C, H, W).

        Returns:
            `boxes` (N, A, 4) as x1, y1, x2, y2 in pixels of the input, `logits` (N, A, num_labels),
            `anchors` (N, A, 4) like boxes, and `deltas` (N, A, 4), by which the boxes differ from
            them, as `networks.anchors` describes them.
        """
        parts, anchors = [], []
        levels = self.neck(self.backbone(images))
        for stride, features in zip(self.neck.strides, levels, strict=True):
            parts.append([one.float() for one in self.head(features)])
            shapes = [(stride * width, stride * height) for width, height in _SHAPES]
            anchors.append(anchors_of(features, (stride, stride), shapes))
        deltas, logits = (torch.cat(one, dim=1) for one in zip(*parts, strict=True))
        own = torch.cat(anchors)
        return {
            "boxes": decode(deltas, own),
            "logits": logits,
            "anchors": own.expand(images.shape[0], -1, -1),
            "deltas": deltas,
        }


class _Head(nn.Module):
    """Predicts the differences and the labels of every anchor of a feature map."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        count = len(_SHAPES)
        self.box_tower = convolutions(width, width, _DEPTH)
        self.label_tower = convolutions(width, width, _DEPTH)
        self.deltas = nn.Conv2d(width, count * 4, kernel_size=3, padding=1)
        self.features = nn.Conv2d(width, count * _FEATURES, kernel_size=3, padding=1)
        # The labels come last: the last layer of a network is what another set of labels replaces.
        self.labels = nn.Linear(_FEATURES, num_labels)
        nn.init.normal_(self.deltas.weight, std=0.01)
        nn.init.zeros_(cast("Tensor", self.deltas.bias))
        nn.init.normal_(self.labels.weight, std=0.01)
        nn.init.zeros_(self.labels.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (N, F, h, w) to differences (N, A, 4) and logits (N, A, num_labels)."""
        deltas = rows_of(self.deltas(self.box_tower(features)), 4)
        of_anchors = rows_of(self.features(self.label_tower(features)), _FEATURES)
        return deltas, self.labels(of_anchors) + _PRIOR
