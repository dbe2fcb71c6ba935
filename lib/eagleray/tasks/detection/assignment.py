"""Assigns the points and the anchors of detectors to objects.

What predicts an object follows from where it is, and never from what the network predicts, so that
the assignment is the same for any number of workers. Only the proposals of a detector with two
stages are predictions themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from eagleray.tasks.detection.objects import CROWD, OBJECT

__all__ = [
    "BACKGROUND",
    "UNDECIDED",
    "assign_anchors",
    "assign_points",
    "in_crowd",
    "inside",
    "objects_of",
    "pick",
]

BACKGROUND = -1
"""What a point or an anchor without an object is assigned to."""

UNDECIDED = -2
"""What an anchor is assigned to that is neither right nor wrong."""

_RADIUS = 1.5  # strides from an object's centre to the points that predict it
_LARGEST = 8.0  # longest side of the objects of a feature map, in strides


def objects_of(targets: Tensor) -> Tensor:
    """Return the objects (N, K, 6) of targets, at least one: a batch may have no object at all."""
    return functional.pad(targets[:, 1:], (0, 0, 0, 1))


def pick(objects: Tensor, assigned: Tensor) -> Tensor:
    """Return the object (N, A, 6) of each point or anchor, any one for those that have none."""
    index = assigned.clamp(min=0)[:, :, None].expand(-1, -1, objects.shape[2])
    return objects.gather(1, index)


def assign_points(points: Tensor, objects: Tensor) -> Tensor:
    """Return the index of the object that each point predicts.

    An object belongs to the feature map whose stride suits its size; the points within 1.5 strides
    of its centre predict it (centre sampling). Of several objects, a point predicts the smallest.

    Args:
        points: x, y and stride of each point (A, 3), in pixels of the input.
        objects: Objects (N, K, 6).

    Returns:
        int64 tensor (N, A), `BACKGROUND` for none.
    """
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
    return torch.where(smallest.isfinite(), index, BACKGROUND)


def assign_anchors(
    anchors: Tensor,
    objects: Tensor,
    *,
    min_overlap: float,
    max_background: float,
    serves_all: bool = True,
) -> Tensor:
    """Return the index of the object that each anchor predicts.

    An anchor predicts the object that it overlaps most, by its intersection over union.

    Args:
        anchors: Anchors (A, 4), or those of each image (N, A, 4).
        objects: Objects (N, K, 6).
        min_overlap: Smallest overlap with the object that an anchor predicts.
        max_background: Overlap below which an anchor predicts the background.
        serves_all: Whether every object also has the anchor that overlaps it most.

    Returns:
        int64 tensor (N, A), `BACKGROUND` for none and `UNDECIDED` between the two overlaps.
    """
    of_images = anchors.expand(len(objects), -1, -1)
    return torch.stack(
        [
            _assign_anchors(one, own, min_overlap, max_background, serves_all)
            for one, own in zip(of_images, objects, strict=True)
        ]
    )


def _assign_anchors(
    anchors: Tensor, objects: Tensor, min_overlap: float, max_background: float, serves_all: bool
) -> Tensor:
    is_object = (objects[:, 5] == OBJECT) & ((objects[:, 2:4] - objects[:, :2]).prod(dim=1) > 0)
    overlaps = torch.where(is_object[:, None], _iou(objects[:, :4], anchors), -1.0)  # (K, A)
    best, assigned = overlaps.max(dim=0)
    assigned = torch.where(best < min_overlap, UNDECIDED, assigned)
    assigned = torch.where(best < max_background, BACKGROUND, assigned)
    if not serves_all:
        return assigned
    largest, nearest = overlaps.max(dim=1)
    is_nearest = functional.one_hot(nearest, len(anchors)).bool() & (largest > 0)[:, None]
    claims, claimant = torch.where(is_nearest, overlaps, -1.0).max(dim=0)
    return torch.where(claims > 0, claimant, assigned)


def _iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of boxes (K, 4) and (A, 4) as (K, A)."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    areas = [(some[:, 2:] - some[:, :2]).clamp(min=0).prod(dim=1) for some in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp(min=1e-9)


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Return whether points are in boxes.

    Args:
        points: x and y of each point (A, 2).
        boxes: Boxes (N, A, 4) or (N, 1, 4).

    Returns:
        bool tensor (N, A).
    """
    return ((points >= boxes[..., :2]) & (points <= boxes[..., 2:])).all(dim=2)


def in_crowd(points: Tensor, objects: Tensor) -> Tensor:
    """Return whether each point is in the box of a crowd.

    Args:
        points: x and y of each point (A, 2), or of those of each image (N, A, 2).
        objects: Objects (N, K, 6).

    Returns:
        bool tensor (N, A).
    """
    x, y = points[..., 0, None], points[..., 1, None]
    x1, y1, x2, y2 = objects[:, None, :, :4].unbind(dim=3)
    is_inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
    return (is_inside & (objects[:, None, :, 5] == CROWD)).any(dim=2)
