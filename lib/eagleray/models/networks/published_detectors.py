"""Dense detectors of torchvision, whose published weights find the labels of COCO.

They are torchvision's layers without what surrounds them there: the image contract resizes and
normalises, and the task chooses the objects. Boxes are cut off at the edges of the input before
they are compared, as torchvision does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagleray.models.networks.anchors import decode
from eagleray.models.networks.fcos import joint_logits
from eagleray.models.networks.layers import softmax_logits
from eagleray.models.networks.published_layers import (
    FixedNormalization,
    LabelConvolution,
    LabelRows,
    build_torchvision,
    default_boxes,
    level_anchors,
    pad_images,
)
from eagleray.models.networks.suppression import clip_boxes

__all__ = ["PublishedFCOS", "PublishedRetinaNet", "PublishedSSD"]

_DELTA_UNITS = (0.1, 0.1, 0.2, 0.2)  # of the outputs of SSD


class _DenseDetector(FixedNormalization):
    """A backbone with a feature pyramid, and heads that all levels share.

    Args:
        name: Name of the network.
        num_labels: Number of labels.
    """

    def __init__(self, name: str, num_labels: int) -> None:
        super().__init__()
        network = build_torchvision(name, LabelRows(num_labels).count)
        self.backbone = network.backbone
        self.head = network.head
        self._generator = network.anchor_generator
        labels = self.head.classification_head
        labels.cls_logits = LabelConvolution(
            labels.cls_logits.in_channels, labels.num_anchors, num_labels
        )

    def _levels(self, padded: Tensor) -> list[Tensor]:
        return list(self.backbone(padded).values())

    def _label_logits(self, levels: list[Tensor]) -> Tensor:
        """Return logits (N, A, num_labels)."""
        labels = self.head.classification_head
        return torch.cat([labels.cls_logits(labels.conv(one)) for one in levels], dim=1).float()


class PublishedRetinaNet(_DenseDetector):
    """RetinaNet: nine anchors at each place of five feature maps."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict at every anchor.

        Args:
            images: Normalised images (N, C, H, W).

        Returns:
            `boxes` (N, A, 4) as x1, y1, x2, y2 in pixels of the input, `logits` (N, A, num_labels),
            `anchors` (N, A, 4) like boxes, and `deltas` (N, A, 4), by which the boxes differ from
            them, as `networks.anchors` describes them.
        """
        size = (images.shape[2], images.shape[3])
        padded = pad_images(images)
        levels = self._levels(padded)
        anchors = torch.cat(level_anchors(self._generator, padded, levels))
        deltas = self.head.regression_head(levels).float()
        return {
            "boxes": clip_boxes(decode(deltas, anchors), size),
            "logits": self._label_logits(levels),
            "anchors": anchors.expand(images.shape[0], -1, -1),
            "deltas": deltas,
        }


class PublishedFCOS(_DenseDetector):
    """FCOS: a point at each place of five feature maps, with the distances to the edges of a box.

    Its anchors are squares around the points, whose sides are the units of the distances.
    """

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict at every point.

        Args:
            images: Normalised images (N, C, H, W).

        Returns:
            `boxes` (N, A, 4) as x1, y1, x2, y2 in pixels of the input; `logits` (N, A, num_labels)
            of the scores; `label_logits` (N, A, num_labels) and `centreness` (N, A), a logit, which
            the scores are made of; and `points` (N, A, 3): x, y and stride of the point of each.
            Boxes are cut off at the edges in evaluation only: edges that are cut off learn nothing.
        """
        size = (images.shape[2], images.shape[3])
        padded = pad_images(images)
        levels = self._levels(padded)
        squares = torch.cat(level_anchors(self._generator, padded, levels))
        places, sides = (squares[:, :2] + squares[:, 2:]) / 2, squares[:, 2:] - squares[:, :2]
        distances, centreness = (one.float() for one in self.head.regression_head(levels))
        before, behind = distances[..., :2] * sides, distances[..., 2:] * sides
        boxes = torch.cat([places - before, places + behind], dim=2)
        label_logits = self._label_logits(levels)
        points = torch.cat([places, sides[:, :1]], dim=1)
        return {
            "boxes": boxes if self.training else clip_boxes(boxes, size),
            "logits": joint_logits(label_logits, centreness),
            "label_logits": label_logits,
            "centreness": centreness[..., 0],
            "points": points.expand(images.shape[0], -1, -1),
        }


class PublishedSSD(FixedNormalization):
    """SSD and SSDlite: six feature maps with anchors, and a softmax of labels and background.

    Args:
        name: Name of the network.
        num_labels: Number of labels.
    """

    def __init__(self, name: str, num_labels: int) -> None:
        super().__init__()
        self._rows = LabelRows(num_labels)
        network = build_torchvision(name, self._rows.count)
        self.backbone = network.backbone
        self.head = network.head
        self._generator = network.anchor_generator

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict at every anchor.

        Args:
            images: Normalised images (N, C, H, W).

        Returns:
            `boxes` (N, A, 4) as x1, y1, x2, y2 in pixels of the input, and `logits`
            (N, A, num_labels) of the probabilities of the softmax.
        """
        levels = list(self.backbone(images).values())
        found = self.head(levels)
        anchors = default_boxes(self._generator, images, levels)
        deltas = found["bbox_regression"].float()
        boxes = decode(deltas * deltas.new_tensor(_DELTA_UNITS), anchors)
        return {
            "boxes": clip_boxes(boxes, (images.shape[2], images.shape[3])),
            "logits": self._rows.labels(softmax_logits(found["cls_logits"].float())),
        }
