"""The loss of a dense detector: every point of its feature maps predicts one box and its labels.

Points are assigned to objects by where they are, and never by what the network predicts, so that
the assignment is the same for any number of workers. An object belongs to the feature map whose
stride suits its size; the points within 1.5 strides of its centre predict it (centre sampling, as
in FCOS: Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection"). Of several
objects, a point predicts the smallest.

Labels have the quality focal loss (Li et al. 2020, "Generalized Focal Loss"), whose target is the
overlap of the predicted box with the true one; boxes have the generalised IoU loss (Rezatofighi et
al. 2019).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from eagleray.tasks.objects import CROWD, OBJECT

__all__ = ["detection_losses"]

_RADIUS = 1.5  # strides from an object's centre to the points that predict it
_LARGEST = 8.0  # longest side of the objects of a feature map, in strides
_BOX_WEIGHT = 2.0
_FOCUS = 2.0  # exponent of the quality focal loss


def detection_losses(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Return the loss of each image.

    Args:
        outputs: `boxes` (N, A, 4) as x1, y1, x2, y2 and `logits` (N, A, num_labels) of the
            detector's points, and `points` (N, A, 3) with each one's x, y and stride, in pixels of
            the input.
        targets: Targets (N, 1 + K, 6) in pixels of the input, as `tasks.objects` describes them.

    Returns:
        float32 tensor (N,).
    """
    boxes, logits = outputs["boxes"], outputs["logits"]
    points = outputs["points"][0]
    objects = functional.pad(targets[:, 1:], (0, 0, 0, 1))  # a batch may have no object at all
    assigned = _assign(points, objects)  # (N, A), -1 for none
    is_assigned = assigned >= 0
    wanted = objects.gather(1, assigned.clamp(min=0)[:, :, None].expand(-1, -1, objects.shape[2]))
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
    counted = is_assigned | ~_in_crowd(points, objects)
    of_labels = (of_labels * counted[:, :, None]).sum(dim=(1, 2))
    num_assigned = is_assigned.sum(dim=1).clamp(min=1)
    return (of_labels + _BOX_WEIGHT * of_boxes) / num_assigned


def _assign(points: Tensor, objects: Tensor) -> Tensor:
    """Return the index of the object that each point predicts, -1 for none: int64 (N, A)."""
    x, y, stride = points.unbind(dim=1)
    centres = (objects[:, None, :, 0:2] + objects[:, None, :, 2:4]) / 2  # (N, 1, K, 2)
    sides = objects[:, None, :, 2:4] - objects[:, None, :, 0:2]
    longest, area = sides.amax(dim=3), sides.prod(dim=3)
    reach = (_RADIUS * stride)[None, :, None]
    is_near = ((centres[..., 0] - x[None, :, None]).abs() < reach) & (
        (centres[..., 1] - y[None, :, None]).abs() < reach
    )
    low = torch.where(stride == stride.min(), 0.0, stride * _LARGEST / 2)
    high = torch.where(stride == stride.max(), torch.inf, stride * _LARGEST)
    suits = (longest > low[None, :, None]) & (longest <= high[None, :, None])
    is_object = (objects[:, None, :, 5] == OBJECT) & (area > 0)
    cost = torch.where(is_near & suits & is_object, area, torch.inf)
    smallest, index = cost.min(dim=2)
    return torch.where(smallest.isfinite(), index, -1)


def _in_crowd(points: Tensor, objects: Tensor) -> Tensor:
    """Return whether each point is in the box of a crowd: bool (N, A)."""
    x, y = points[None, :, None, 0], points[None, :, None, 1]
    x1, y1, x2, y2 = objects[:, None, :, :4].unbind(dim=3)
    inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
    return (inside & (objects[:, None, :, 5] == CROWD)).any(dim=2)


def _paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of each box (M, 4) with the other one of its row."""
    low = torch.maximum(boxes[:, :2], others[:, :2])
    high = torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = [(some[:, 2:] - some[:, :2]).prod(dim=1) for some in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-9)
