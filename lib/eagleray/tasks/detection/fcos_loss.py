"""The loss of FCOS (Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection").

Labels have the focal loss, boxes the generalised IoU loss, and the centreness of a point, which is
1 in the middle of its object and 0 at an edge, has the binary cross-entropy. Points near the centre
of an object predict it, if they are in its box.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from eagleray.tasks.detection.assignment import (
    BACKGROUND,
    assign_points,
    in_crowd,
    inside,
    objects_of,
    pick,
)

__all__ = ["fcos_losses"]


def fcos_losses(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Return the loss of each image.

    Args:
        outputs: `boxes` (N, A, 4) as x1, y1, x2, y2, `label_logits` (N, A, num_labels) and
            `centreness` (N, A) of the detector's points, the latter two as logits, and `points`
            (N, A, 3) with each one's x, y and stride, in pixels of the input.
        targets: Targets (N, 1 + K, 6) in pixels of the input, as `tasks.objects` describes them.

    Returns:
        float32 tensor (N,).
    """
    boxes, logits, points = outputs["boxes"], outputs["label_logits"], outputs["points"][0]
    objects = objects_of(targets)
    assigned = assign_points(points, objects)
    wanted = pick(objects, assigned)
    assigned = torch.where(inside(points[:, :2], wanted[..., :4]), assigned, BACKGROUND)
    is_assigned = assigned >= 0
    labels = functional.one_hot(wanted[..., 4].long(), logits.shape[2]) * is_assigned[:, :, None]
    of_labels: Tensor = sigmoid_focal_loss(logits, labels.to(logits.dtype))
    counted = is_assigned | ~in_crowd(points[:, :2], objects)
    losses: Tensor = (of_labels * counted[:, :, None]).sum(dim=(1, 2))
    image, point = is_assigned.nonzero(as_tuple=True)
    if len(image):
        true = wanted[image, point, :4]
        of_boxes = generalized_box_iou_loss(boxes[image, point], true)
        of_centres = functional.binary_cross_entropy_with_logits(
            outputs["centreness"][image, point],
            _centreness(points[point, :2], true),
            reduction="none",
        )
        losses = losses.index_add(0, image, of_boxes + of_centres)
    return losses / is_assigned.sum(dim=1).clamp(min=1)


def _centreness(places: Tensor, boxes: Tensor) -> Tensor:
    """Return how near the middle of its box (M, 4) each place (M, 2) is: from 0 to 1, (M,)."""
    before, behind = places - boxes[:, :2], boxes[:, 2:] - places
    shares = torch.minimum(before, behind) / torch.maximum(before, behind).clamp(min=1e-9)
    return shares.prod(dim=1).clamp(min=0).sqrt()
