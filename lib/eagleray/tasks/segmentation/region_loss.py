"""The loss of a network of boxes and masks: that of a detector with two stages, and one of masks.

Source: He et al. 2017, "Mask R-CNN". The true boxes are the extents of the objects in the object
maps, after these were moved with the pixels. Each detection that overlaps an object by an IoU of
0.5 has that object's pixels as its true mask, and the loss of an image's masks is the mean binary
cross-entropy over these detections. Each image has a loss of its own, so that it is the same for
any number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from eagleray.tasks.detection.assignment import assign_anchors, objects_of
from eagleray.tasks.detection.objects import OBJECT, ROW
from eagleray.tasks.detection.two_stage_loss import two_stage_losses
from eagleray.tasks.segmentation.class_maps import IGNORED

__all__ = ["mask_losses", "mask_targets", "region_losses", "rows_of_maps"]

_MIN_OVERLAP = 0.5  # IoU of a detection with the object whose mask it learns
_SAMPLES = 2  # pixels that a place of a mask looks at, in each direction


def region_losses(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Return the loss of each image.

    Args:
        outputs: What `two_stage_losses` needs, `detections` (N, M, 6) in pixels of the input, and
            `masks`, logits (N, M, S, S).
        targets: Object maps, int32 (N, 2, H, W); boxes around `IGNORED` pixels are neither right
            nor wrong.

    Returns:
        float32 tensor (N,).
    """
    classes, numbers = targets[:, 0], targets[:, 1]
    rows = rows_of_maps(targets)
    of_boxes = two_stage_losses(outputs, rows, is_ignored=classes == IGNORED)
    boxes = outputs["detections"][..., :4].detach()
    return of_boxes + mask_losses(outputs["masks"], boxes, objects_of(rows), numbers)


def rows_of_maps(maps: Tensor) -> Tensor:
    """Return the objects of maps (N, 2, H, W) as rows, in the order of their numbers.

    Returns:
        float32 tensor (N, 1 + K, 6) as `tasks.detection.objects` describes it: a row for each
        number, of the extents of its pixels. The labels are those of objects, without a background.
    """
    classes, numbers = maps[:, 0], maps[:, 1].long()
    num_images, height, width = numbers.shape
    length = int(numbers.max()) + 1
    image = torch.arange(num_images, device=maps.device)[:, None, None]
    cells = (image * length + numbers).flatten()
    down = torch.arange(height, device=maps.device, dtype=torch.float32)[:, None]
    across = torch.arange(width, device=maps.device, dtype=torch.float32)
    columns = [
        _over_cells(values.expand(numbers.shape), cells, num_images * length, reduce)
        for values, reduce in (
            (across, "amin"),
            (down, "amin"),
            (across + 1, "amax"),
            (down + 1, "amax"),
            (classes.float() - 1, "amax"),
        )
    ]
    is_object = torch.bincount(cells, minlength=num_images * length) > 0
    rows = torch.stack([*columns, is_object * float(OBJECT)], dim=1)
    rows = (rows * is_object[:, None]).reshape(num_images, length, ROW)
    rows[:, 0] = rows.new_tensor([width, height, 0, 0, 0, 0])
    return rows


def _over_cells(values: Tensor, cells: Tensor, length: int, reduce: str) -> Tensor:
    """Return the smallest or largest of the values of each cell (length,); 0 without any."""
    found = values.new_zeros(length)
    return found.scatter_reduce(0, cells, values.flatten(), reduce, include_self=False)


def mask_losses(masks: Tensor, boxes: Tensor, objects: Tensor, numbers: Tensor) -> Tensor:
    """Return the mean cross-entropy of the masks of each image (N,); 0 without any to learn.

    Args:
        masks: Logits (N, M, S, S).
        boxes: Boxes (N, M, 4) in pixels of the input.
        objects: Objects (N, K, 6), that of the number 1 first.
        numbers: Number of the object of each pixel of the input, 0 for none (N, H, W).
    """
    assigned = assign_anchors(
        boxes, objects, min_overlap=_MIN_OVERLAP, max_background=_MIN_OVERLAP, serves_all=False
    )
    is_learned = assigned >= 0
    true = mask_targets(numbers, boxes, assigned + 1, masks.shape[2])
    losses = functional.binary_cross_entropy_with_logits(masks, true, reduction="none")
    return (losses.mean(dim=(2, 3)) * is_learned).sum(dim=1) / is_learned.sum(dim=1).clamp(min=1)


def mask_targets(numbers: Tensor, boxes: Tensor, wanted: Tensor, side: int) -> Tensor:
    """Return which share of each place of a box belongs to an object, of 2 x 2 samples.

    Args:
        numbers: Number of the object of each pixel of the input, 0 for none (N, H, W).
        boxes: Boxes (N, M, 4) in pixels of the input.
        wanted: Number of the object of each box (N, M).
        side: Places of a box in each direction.

    Returns:
        float32 tensor (N, M, side, side).
    """
    num_images, height, width = numbers.shape
    count = side * _SAMPLES
    steps = (torch.arange(count, device=boxes.device, dtype=boxes.dtype) + 0.5) / count
    boxes = boxes.nan_to_num()
    x, y = (
        (boxes[..., first, None] + steps * (boxes[..., first + 2] - boxes[..., first])[..., None])
        .floor()
        .long()
        .clamp(0, length - 1)
        for first, length in ((0, width), (1, height))
    )
    image = torch.arange(num_images, device=boxes.device)[:, None, None, None]
    samples = numbers[image, y[..., :, None], x[..., None, :]] == wanted[..., None, None]
    return functional.avg_pool2d(samples.to(boxes.dtype), _SAMPLES)
