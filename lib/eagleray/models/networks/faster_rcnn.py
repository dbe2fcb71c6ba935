"""Faster R-CNN: a detector with two stages, on the feature maps of any convolutional classifier.

Source: Ren et al. 2015, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
Networks", on a feature pyramid as in Lin et al. 2017, "Feature Pyramid Networks for Object
Detection", with the heads of torchvision. The first stage proposes a fixed number of boxes; the
second one looks at the features in each, moves its edges and scores its labels. A box is moved the
same way for all labels, so that the last layer has one output for each label, and is all that other
labels replace.

Labels exclude each other and the background, by a softmax. What is returned as a logit is that of
the probability of the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from eagleray.models.networks.anchors import decode
from eagleray.models.networks.backbone import FeatureLevel
from eagleray.models.networks.layers import group_norm, softmax_logits
from eagleray.models.networks.proposals import RegionProposalNetwork
from eagleray.models.networks.pyramid import pyramid_width
from eagleray.models.networks.regions import pool_regions

__all__ = ["BoxHead", "FasterRCNN"]

_PROPOSALS = 300  # as in the paper
_SIDE = 7  # places of the features of a proposal, in each direction
_DELTA_UNITS = (0.1, 0.1, 0.2, 0.2)  # of the outputs, as in the paper


class FasterRCNN(nn.Module):
    """A detector with two stages.

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
        width = pyramid_width(levels)
        self.neck = FeaturePyramidNetwork(
            [level.channels for level in levels],
            width,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=group_norm,
        )
        self._layers = [level.layer for level in levels]
        self._strides = [level.stride for level in levels]
        strides = [*self._strides, 2 * self._strides[-1]]
        self.proposals = RegionProposalNetwork(width, strides, _PROPOSALS)
        self._make_heads(width, num_labels)

    def _make_heads(self, width: int, num_labels: int) -> None:
        """Make what looks at the features of boxes; the layer of the labels comes last."""
        self.head = BoxHead(width, num_labels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict in every proposal.

        Args:
            images: Normalised images (N, C, H, W).

        Returns:
            `boxes` (N, P, 4) as x1, y1, x2, y2 in pixels of the input, `logits` (N, P, num_labels)
            and `background` (N, P), which is a logit too; `proposals` (N, P, 4) like boxes, and
            `deltas` (N, P, 4), by which the boxes differ from them. Of the first stage `anchors`
            (N, A, 4) like boxes, `objectness` (N, A), a logit, and `anchor_deltas` (N, A, 4), by
            which what it proposes differs from the anchors, as `networks.anchors` describes it.
        """
        return self._detect(images, self._levels(images))

    def _levels(self, images: Tensor) -> list[Tensor]:
        """Return the feature pyramid (N, width, h, w) of images, the largest level first."""
        maps = self.backbone(images)
        return list(self.neck({layer: maps[layer] for layer in self._layers}).values())

    def _pool(self, levels: Sequence[Tensor], boxes: Tensor, side: int) -> Tensor:
        """Return the features of boxes (N, P, 4), (N·P, width, side, side)."""
        return pool_regions(levels[:-1], self._strides, boxes, side)

    def _detect(self, images: Tensor, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what `forward` describes, given the pyramid of the images."""
        found = self.proposals(levels, (images.shape[2], images.shape[3]))
        deltas, scores = self.head(self._pool(levels, found.boxes, _SIDE))
        shape = found.boxes.shape[:2]
        deltas = deltas.float().reshape(*shape, 4) * deltas.new_tensor(_DELTA_UNITS).float()
        logits = softmax_logits(scores.float().reshape(*shape, -1))
        return {
            "boxes": decode(deltas, found.boxes),
            "logits": logits[..., 1:],
            "background": logits[..., 0],
            "proposals": found.boxes,
            "deltas": deltas,
            "anchors": found.anchors.expand(images.shape[0], -1, -1),
            "objectness": found.objectness,
            "anchor_deltas": found.deltas,
        }


class BoxHead(nn.Module):
    """Predicts the differences and the labels of every proposal."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        inner = 4 * width  # 1024 for a pyramid of 256 channels, as in the papers
        self.layers = TwoMLPHead(width * _SIDE**2, inner)
        self.deltas = nn.Linear(inner, 4)
        self.background = nn.Linear(inner, 1)
        # The labels come last: the last layer of a network is what another set of labels replaces.
        self.labels = nn.Linear(inner, num_labels)
        for layer, deviation in (
            (self.deltas, 0.001),
            (self.background, 0.01),
            (self.labels, 0.01),
        ):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Map pooled features (M, F, 7, 7) to differences (M, 4) and scores (M, 1 + num_labels).

        The score of the background comes first.
        """
        features = self.layers(pooled)
        scores = torch.cat([self.background(features), self.labels(features)], dim=1)
        return self.deltas(features), scores
