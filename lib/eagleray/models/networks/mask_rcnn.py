"""Mask R-CNN: a detector with two stages that also predicts a small mask in each box.

    maskrcnn/resnet18    fasterrcnn/resnet18 with a third head

Source: He et al. 2017, "Mask R-CNN". The network chooses the objects itself, as the head of masks
looks at the boxes that are found and not at the proposals: boxes of one label that overlap are
reduced to the best (non-maximum suppression), and the best over all labels get masks. Their number
is fixed, and where there are fewer objects, rows with a score of 0 fill it up.

A mask is of the object in a box, whatever its label. In the paper's comparison such masks have an
average precision of 29.7, and masks of each label 30.3. So other labels replace the last layer
alone, as in the detector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from eagleray.models.networks.faster_rcnn import FasterRCNN
from eagleray.models.networks.layers import convolutions
from eagleray.models.networks.suppression import (
    clip_boxes,
    pairwise_overlaps,
    take_boxes,
    unsuppressed,
)

__all__ = ["MaskRCNN", "choose_detections"]

_DETECTIONS = 100  # as in the paper
_TRAINED = 64  # of them that get a mask in training
_SIDE = 14  # places of the features of a box; its mask has twice as many
_DEPTH = 4  # convolutions before the mask
_MAX_OVERLAP = 0.5  # largest IoU of two objects of a label, as in the paper
_CANDIDATES = 512  # pairs of a box and a label that are compared with each other


class MaskRCNN(FasterRCNN):
    """A detector with two stages and masks.

    Args:
        backbone: Maps images to feature maps by layer.
        levels: The feature maps to use, the largest first.
        num_labels: Number of labels.

    Attributes:
        trained_count: Number of detections that get a mask in training.
    """

    def _make_heads(self, width: int, num_labels: int) -> None:
        self.trained_count = _TRAINED
        self.masks = _MaskHead(width)
        super()._make_heads(width, num_labels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Find objects and their masks.

        Args:
            images: Normalised images (N, C, H, W).

        Returns:
            `detections` (N, M, 6) as x1, y1, x2, y2 in pixels of the input and within it, score and
            index of the label, best first, rows with a score of 0 last; `masks` (N, M, 28, 28),
            logits of the places of each box. Also all that a `FasterRCNN` returns but `boxes`. In
            training M is smaller.
        """
        levels = self._levels(images)
        found = self._detect(images, levels)
        size = (images.shape[2], images.shape[3])
        boxes, scores = found.pop("boxes").detach(), found["logits"].detach().sigmoid()
        count = self.trained_count if self.training else _DETECTIONS
        detections = choose_detections(boxes, scores, size, count)
        masks = self.masks(self._pool(levels, detections[..., :4], _SIDE)).float()
        shape = (*detections.shape[:2], *masks.shape[2:])
        return {"detections": detections, "masks": masks.reshape(shape), **found}


def choose_detections(boxes: Tensor, scores: Tensor, size: tuple[int, int], count: int) -> Tensor:
    """Return the best detections that overlap no better one of their label, (N, count, 6).

    Args:
        boxes: Boxes (N, P, 4) as x1, y1, x2, y2 in pixels of the input.
        scores: Probabilities of labels (N, P, num_labels).
        size: Height and width of the input in pixels.
        count: Number of detections; those that are missing have the score 0.
    """
    num_labels = scores.shape[2]
    flat = scores.flatten(1)
    best, places = flat.topk(min(_CANDIDATES, flat.shape[1]), dim=1)
    labels = places % num_labels
    own = clip_boxes(take_boxes(boxes, places // num_labels), size)
    is_same = (labels[:, :, None] == labels[:, None]).to(own.dtype)
    stays = unsuppressed(pairwise_overlaps(own) * is_same, _MAX_OVERLAP)
    ranks, order = torch.where(stays, best, best - 2).topk(min(count, best.shape[1]), dim=1)
    columns = [
        take_boxes(own, order),
        ranks.clamp(min=0)[..., None],
        labels.gather(1, order)[..., None].to(own.dtype),
    ]
    return functional.pad(torch.cat(columns, dim=2), (0, 0, 0, count - order.shape[1]))


class _MaskHead(nn.Sequential):
    """Maps features of boxes (M, width, 14, 14) to logits of masks (M, 1, 28, 28).

    Its layers have half the channels of the pyramid, with which a box costs 160 million
    multiply-adds instead of 510.
    """

    def __init__(self, width: int) -> None:
        inner = max(8, width // 16 * 8)
        super().__init__(
            convolutions(width, inner, _DEPTH),
            nn.ConvTranspose2d(inner, inner, kernel_size=2, stride=2),
            nn.ReLU(),
            nn.Conv2d(inner, 1, kernel_size=1),
        )
