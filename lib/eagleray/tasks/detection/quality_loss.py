"""The loss of a detector whose points predict the quality of their boxes.

Labels have the quality focal loss (Li et al. 2020, "Generalized Focal Loss"), whose target is the
overlap of the predicted box with the true one; boxes have the generalised IoU loss (Rezatofighi et
al. 2019). Points are assigned to objects by centre sampling.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from eagleray.core.errors import InputError
from eagleray.tasks.detection.assignment import assign_points, in_crowd, objects_of, pick

__all__ = ["quality_focal_losses"]

_BOX_WEIGHT = 2.0
_FOCUS = 2.0  # exponent of the quality focal loss


def quality_focal_losses(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Return the loss of each image.

    Args:
        outputs: `boxes` (N, A, 4) as x1, y1, x2, y2 and `logits` (N, A, num_labels) of the
            detector's points, and `points` (N, A, 3) with each one's x, y and stride, in pixels of
            the input.
        targets: Targets (N, 1 + K, 6) in pixels of the input, as `tasks.objects` describes them.

    Returns:
        float32 tensor (N,).

    Raises:
        InputError: If the network returns no points.
    """
    if "points" not in outputs:
        raise InputError(
            "The loss quality_focal is of networks that return `points`, and this one returns "
            f"{', '.join(sorted(outputs))}; leave --loss out."
        )
    boxes, logits = outputs["boxes"], outputs["logits"]
    points = outputs["points"][0]
    objects = objects_of(targets)
    assigned = assign_points(points, objects)
    is_assigned = assigned >= 0
    wanted = pick(objects, assigned)
    image, point = is_assigned.nonzero(as_tuple=True)
    found, true = boxes[image, point], wanted[image, point, :4]
    of_boxes = boxes.new_zeros(len(boxes))
    quality = torch.zeros_like(logits)
    if len(image):
        losses = generalized_box_iou_loss(found, true)
        of_boxes = of_boxes.index_add(0, image, losses)
        overlaps = _paired_iou(found.detach(), true)
        quality[image, point, wanted[image, point, 4].long()] = overlaps
    of_labels = functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    of_labels = of_labels * (quality - logits.detach().sigmoid()).abs().pow(_FOCUS)
    counted = is_assigned | ~in_crowd(points[:, :2], objects)
    of_labels = (of_labels * counted[:, :, None]).sum(dim=(1, 2))
    num_assigned = is_assigned.sum(dim=1).clamp(min=1)
    return (of_labels + _BOX_WEIGHT * of_boxes) / num_assigned


def _paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of each box (M, 4) with the other one of its row."""
    low = torch.maximum(boxes[:, :2], others[:, :2])
    high = torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = [(some[:, 2:] - some[:, :2]).prod(dim=1) for some in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-9)
