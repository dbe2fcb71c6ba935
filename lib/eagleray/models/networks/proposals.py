"""Region proposals: the first stage of a detector with two stages.

Source: Ren et al. 2015, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
Networks", on a feature pyramid as in Lin et al. 2017, "Feature Pyramid Networks for Object
Detection". Every anchor has one logit, whether it shows any object, and differences of a box from
it. The best boxes of each level are reduced to those that do not overlap a better one, and the best
of these over all levels are the proposals.

All shapes are fixed: what is suppressed is ranked last, instead of left out. So a batch gives what
its single images give, and a graph of the network has no lengths that depend on the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead

from eagleray.models.networks.anchors import anchors_of, decode, rows_of, shape_anchors
from eagleray.models.networks.suppression import (
    clip_boxes,
    pairwise_overlaps,
    take_boxes,
    unsuppressed,
)

__all__ = ["Proposals", "RegionProposalNetwork"]

_SIDE = 4.0  # of an anchor, in strides
_RATIOS = (0.5, 1.0, 2.0)  # of height to width
_SHAPES = shape_anchors(_SIDE, _RATIOS)
_MAX_OF_LEVEL = 512  # boxes of a level that are compared with each other
_MAX_OVERLAP = 0.7  # largest IoU of two proposals of a level
_SUPPRESSED = 1e4  # by which suppressed boxes rank lower, more than logits differ


class Proposals(NamedTuple):
    """The proposals of images, and the predictions that they were chosen from.

    Attributes:
        boxes: The proposals, without a gradient (N, P, 4), as x1, y1, x2, y2 in pixels of the
            input and within it, best first.
        anchors: Anchors (A, 4), like boxes.
        objectness: A logit of each anchor (N, A).
        deltas: How a box differs from each anchor (N, A, 4), as `networks.anchors` describes it.
    """

    boxes: Tensor
    anchors: Tensor
    objectness: Tensor
    deltas: Tensor


class RegionProposalNetwork(nn.Module):
    """Proposes the boxes in which objects may be.

    Args:
        width: Number of channels of the feature maps.
        strides: Pixels of the input for a place of each feature map.
        count: Number of proposals of an image.

    Attributes:
        count: Number of proposals of an image.
    """

    def __init__(self, width: int, strides: Sequence[int], count: int) -> None:
        super().__init__()
        self.head = RPNHead(width, len(_SHAPES))
        self.count = count
        self._strides = tuple(strides)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Proposals:
        """Propose boxes.

        Args:
            levels: Feature maps (N, width, h, w), the largest first.
            size: Height and width of the input in pixels.
        """
        logits, deltas = (
            [rows_of(one, length).float() for one in outputs]
            for outputs, length in zip(self.head(list(levels)), (1, 4), strict=True)
        )
        anchors = [
            anchors_of(features, (stride, stride), [(stride * x, stride * y) for x, y in _SHAPES])
            for features, stride in zip(levels, self._strides, strict=True)
        ]
        parts = [
            _best_of_level(logit[..., 0].detach(), decode(delta.detach(), own), size)
            for logit, delta, own in zip(logits, deltas, anchors, strict=True)
        ]
        ranks, boxes = (torch.cat(one, dim=1) for one in zip(*parts, strict=True))
        _, best = ranks.topk(min(self.count, ranks.shape[1]), dim=1)
        return Proposals(
            take_boxes(boxes, best),
            torch.cat(anchors),
            torch.cat(logits, dim=1)[..., 0],
            torch.cat(deltas, dim=1),
        )


def _best_of_level(
    objectness: Tensor, boxes: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the best predictions of a feature map, at most K.

    Args:
        objectness: Logits (N, A).
        boxes: Boxes (N, A, 4).
        size: Height and width of the input in pixels.

    Returns:
        What they are ranked by (N, K), their logits or far less for those that are suppressed; and
        their boxes within the input (N, K, 4).
    """
    logits, best = objectness.topk(min(_MAX_OF_LEVEL, objectness.shape[1]), dim=1)
    own = clip_boxes(take_boxes(boxes, best), size)
    stays = unsuppressed(pairwise_overlaps(own), _MAX_OVERLAP)
    return torch.where(stays, logits, logits - _SUPPRESSED), own
