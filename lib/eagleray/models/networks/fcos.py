"""FCOS: a detector without anchors, on the feature maps of any convolutional classifier.

Source: Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection". Every point of
five feature maps predicts the distances to the edges of a box, a logit of each label and its
centreness: how near the middle of the box the point is, as a probability. An object's score is the
geometric mean of the probabilities of its label and of the centreness. It is folded into the
logits, so that nothing behind the network knows of the centreness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from eagleray.models.networks.backbone import FeatureLevel
from eagleray.models.networks.layers import convolutions, points_of
from eagleray.models.networks.pyramid import Pyramid, pyramid_width

__all__ = ["FCOS", "joint_logits"]

_DEPTH = 4  # convolutions before each prediction
_PRIOR = -4.6  # logit of a label before training: 1 %, as most points have no object
_HALF_SIDE = 2.0  # distance to each edge before training, in strides
_MAX_LOG_SIDE = 8.0  # keeps boxes finite
_MIN_ABSENCE = 1e-6  # keeps logits finite


class FCOS(nn.Module):
    """A dense detector without anchors.

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
        """Predict at every point of the feature maps.

        Args:
            images: Normalised images (N, C, H, W).

        Returns:
            `boxes` (N, A, 4) as x1, y1, x2, y2 in pixels of the input; `logits` (N, A, num_labels)
            of the scores; `label_logits` (N, A, num_labels) and `centreness` (N, A), a logit, which
            the scores are made of; and `points` (N, A, 3): x, y and stride of the point of each.
        """
        boxes, labels, centres, points = [], [], [], []
        for stride, features in zip(
            self.neck.strides, self.neck(self.backbone(images)), strict=True
        ):
            sides, logits, centreness = self.head(features)
            own = points_of(features, stride)
            boxes.append(_decode(sides.float(), own))
            labels.append(logits.float())
            centres.append(centreness.float())
            points.append(own)
        label_logits, centreness = torch.cat(labels, dim=1), torch.cat(centres, dim=1)
        return {
            "boxes": torch.cat(boxes, dim=1),
            "logits": joint_logits(label_logits, centreness),
            "label_logits": label_logits,
            "centreness": centreness[..., 0],
            "points": torch.cat(points).expand(images.shape[0], -1, -1),
        }


class _Head(nn.Module):
    """Predicts the edges, the centreness and the labels of every point of a feature map."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.box_tower = convolutions(width, width, _DEPTH)
        self.label_tower = convolutions(width, width, _DEPTH)
        self.edges = nn.Conv2d(width, 4, kernel_size=3, padding=1)
        self.centreness = nn.Conv2d(width, 1, kernel_size=3, padding=1)
        # The labels come last: the last layer of a network is what another set of labels replaces.
        self.labels = nn.Conv2d(width, num_labels, kernel_size=3, padding=1)
        for layer in (self.edges, self.centreness, self.labels):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(cast("Tensor", layer.bias))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map features (N, F, h, w) to raw edges (N, h·w, 4), logits of labels and centreness."""
        of_boxes = self.box_tower(features)
        logits = _rows(self.labels(self.label_tower(features))) + _PRIOR
        return _rows(self.edges(of_boxes)), logits, _rows(self.centreness(of_boxes))


def _rows(features: Tensor) -> Tensor:
    """Return features (N, F, h, w) as (N, h·w, F)."""
    return features.flatten(2).transpose(1, 2)


def _decode(raw: Tensor, points: Tensor) -> Tensor:
    """Return boxes (N, A, 4) as x1, y1, x2, y2 from raw distances (N, A, 4)."""
    place, stride = points[:, :2], points[:, 2:]
    distances = raw.clamp(max=_MAX_LOG_SIDE).exp() * stride * _HALF_SIDE
    return torch.cat([place - distances[..., :2], place + distances[..., 2:]], dim=2)


def joint_logits(labels: Tensor, centreness: Tensor) -> Tensor:
    """Return the logits of the geometric means of probabilities, of which logits are given."""
    log_score = (functional.logsigmoid(labels) + functional.logsigmoid(centreness)) / 2
    return log_score - (1 - log_score.exp()).clamp(min=_MIN_ABSENCE).log()
