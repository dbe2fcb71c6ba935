"""Non-maximum suppression with fixed shapes: what is suppressed is marked, instead of left out.

So a batch gives what its single images give, and a graph of a network has no lengths that depend on
the image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["clip_boxes", "pairwise_overlaps", "take_boxes", "unsuppressed"]

_ROUNDS = 8  # see `unsuppressed`


def unsuppressed(overlaps: Tensor, max_overlap: float) -> Tensor:
    """Return which boxes stay, bool (N, K).

    A box is suppressed by a better one that stays. Whether that one stays is repaired in rounds
    (Zheng et al. 2020, "Enhancing Geometric Factors in Model Learning and Inference for Object
    Detection and Instance Segmentation", Cluster-NMS): the result is exact unless more boxes than
    there are rounds, which are 8, overlap one after the other.

    Args:
        overlaps: Overlap of all pairs of boxes of an image (N, K, K), the best boxes first.
        max_overlap: Largest overlap of two boxes that stay.
    """
    suppresses = (overlaps > max_overlap).triu(diagonal=1).to(overlaps.dtype)
    stays = overlaps.new_ones(overlaps.shape[:2])
    for _ in range(_ROUNDS):
        stays = ((stays[:, None] @ suppresses)[:, 0] == 0).to(overlaps.dtype)
    return stays > 0


def pairwise_overlaps(boxes: Tensor) -> Tensor:
    """Return the intersection over union of all pairs of boxes (N, K, 4) of an image, (N, K, K)."""
    x1, y1, x2, y2 = boxes.unbind(dim=2)
    width = _pairs(torch.minimum, x2) - _pairs(torch.maximum, x1)
    height = _pairs(torch.minimum, y2) - _pairs(torch.maximum, y1)
    shared = width.clamp(min=0) * height.clamp(min=0)
    areas = (x2 - x1) * (y2 - y1)
    return shared / (_pairs(torch.add, areas) - shared).clamp(min=1e-9)


def _pairs(operation: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Tensor:
    """Return the results for all pairs of values (N, K) of an image, (N, K, K)."""
    return operation(values[:, :, None], values[:, None])


def take_boxes(boxes: Tensor, order: Tensor) -> Tensor:
    """Return the boxes (N, K, 4) of (N, A, 4) in an order (N, K)."""
    return boxes.gather(1, order[..., None].expand(-1, -1, 4))


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes (N, K, 4) cut off at the edges of an input of a height and a width in pixels."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=2)
