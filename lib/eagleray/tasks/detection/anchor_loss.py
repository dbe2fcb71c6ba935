"""The losses of detectors with anchors, which are assigned to objects by their overlap.

RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection") has the focal loss of labels
and the absolute differences of boxes. SSD (Liu et al. 2016, "SSD: Single Shot MultiBox Detector")
has the cross-entropy of labels and background, in which the worst three anchors of the background
count for each anchor of an object, and the smooth absolute differences of boxes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from eagleray.tasks.detection.assignment import (
    BACKGROUND,
    assign_anchors,
    in_crowd,
    objects_of,
    pick,
)

__all__ = ["deltas_of", "focal_anchor_losses", "is_background", "multibox_losses"]

_HARD_PER_OBJECT = 3
_DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the smooth absolute differences, as in SSD


def focal_anchor_losses(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Return the loss of each image, that of RetinaNet.

    Args:
        outputs: `logits` (N, A, num_labels), `anchors` (N, A, 4) as x1, y1, x2, y2 in pixels of the
            input, and `deltas` (N, A, 4), by which boxes differ from them.
        targets: Targets (N, 1 + K, 6) in pixels of the input, as `tasks.objects` describes them.

    Returns:
        float32 tensor (N,).
    """
    logits, anchors = outputs["logits"], outputs["anchors"][0]
    objects = objects_of(targets)
    assigned = assign_anchors(anchors, objects, min_overlap=0.5, max_background=0.4)
    is_assigned = assigned >= 0
    wanted = pick(objects, assigned)
    labels = functional.one_hot(wanted[..., 4].long(), logits.shape[2]) * is_assigned[:, :, None]
    of_labels: Tensor = sigmoid_focal_loss(logits, labels.to(logits.dtype)).sum(dim=2)
    counted = is_assigned | is_background(anchors, objects, assigned)
    losses: Tensor = (of_labels * counted).sum(dim=1)
    image, anchor = is_assigned.nonzero(as_tuple=True)
    if len(image):
        true = deltas_of(wanted[image, anchor, :4], anchors[anchor])
        of_boxes = (outputs["deltas"][image, anchor] - true).abs().sum(dim=1)
        losses = losses.index_add(0, image, of_boxes)
    return losses / is_assigned.sum(dim=1).clamp(min=1)


def multibox_losses(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Return the loss of each image, that of SSD.

    Args:
        outputs: `logits` (N, A, num_labels) and `background` (N, A), of probabilities whose sum is
            1, `anchors` (N, A, 4) as x1, y1, x2, y2 in pixels of the input, and `deltas`
            (N, A, 4), by which boxes differ from them.
        targets: Targets (N, 1 + K, 6) in pixels of the input, as `tasks.objects` describes them.

    Returns:
        float32 tensor (N,).
    """
    anchors = outputs["anchors"][0]
    objects = objects_of(targets)
    assigned = assign_anchors(anchors, objects, min_overlap=0.5, max_background=0.5)
    is_assigned = assigned >= 0
    wanted = pick(objects, assigned)
    num_assigned = is_assigned.sum(dim=1)
    of_background = -functional.logsigmoid(outputs["background"])
    may_be_hard = is_background(anchors, objects, assigned)
    hardness = torch.where(may_be_hard, of_background.detach(), -1.0)
    rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    is_hard = may_be_hard & (rank < _HARD_PER_OBJECT * num_assigned.clamp(min=1)[:, None])
    losses = (of_background * is_hard).sum(dim=1)
    image, anchor = is_assigned.nonzero(as_tuple=True)
    if len(image):
        labels = wanted[image, anchor, 4].long()
        of_labels = -functional.logsigmoid(outputs["logits"][image, anchor, labels])
        true = deltas_of(wanted[image, anchor, :4], anchors[anchor])
        weights = true.new_tensor(_DELTA_WEIGHTS)
        of_boxes = functional.smooth_l1_loss(
            outputs["deltas"][image, anchor] * weights, true * weights, reduction="none"
        ).sum(dim=1)
        losses = losses.index_add(0, image, of_labels + of_boxes)
    return losses / num_assigned.clamp(min=1)


def is_background(anchors: Tensor, objects: Tensor, assigned: Tensor) -> Tensor:
    """Return which anchors, (A, 4) or (N, A, 4), must find nothing: bool (N, A)."""
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    return (assigned == BACKGROUND) & ~in_crowd(centres, objects)


def deltas_of(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return how boxes (…, 4) differ from their anchors (…, 4).

    The shifts of the centre are in sides of the anchor; those of width and height are logarithms of
    factors.
    """
    sides, wanted = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    shifts = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return torch.cat([shifts / sides, (wanted / sides).log()], dim=-1)
