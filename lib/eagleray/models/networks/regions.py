"""Features of regions: each box is cut out of the level of a pyramid that suits its size.

It is what torchvision's `MultiScaleRoIAlign` computes (He et al. 2017, "Mask R-CNN"; Lin et al.
2017, "Feature Pyramid Networks for Object Detection"), with one difference: the levels are put
below each other into one feature map, and all boxes are cut out of that at once. No shape depends
on which level a box belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

__all__ = ["pool_regions"]

_SAMPLES = 2  # of a pooled place, in each direction
_MARGIN = 2  # places around a level that repeat its last ones, for boxes at its edges


def pool_regions(
    levels: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    side: int,
    *,
    places: float = 7.0,
) -> Tensor:
    """Cut boxes out of feature maps.

    Args:
        levels: Feature maps (N, F, h, w), the largest first.
        strides: Pixels of the input for a place of each of them, each twice the one before.
        boxes: Boxes (N, P, 4) as x1, y1, x2, y2 within the input, in its pixels.
        side: Places of a pooled box in each direction.
        places: Places along the side of a box in the level that suits it, and up to twice as many.

    Returns:
        float32 tensor (N·P, F, side, side).
    """
    boxes = boxes.nan_to_num()  # of weights that have diverged: the kernel reads at any place
    index = _suitable_level(boxes, places * strides[0], len(levels))
    tops = [0]
    for features in levels[:-1]:
        tops.append(tops[-1] + features.shape[2] + _MARGIN)
    top = boxes.new_tensor(tops)[index]
    scaled = boxes / boxes.new_tensor(strides)[index][..., None]
    rows = torch.stack([scaled[..., 0], scaled[..., 1] + top, scaled[..., 2], scaled[..., 3] + top])
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=rows.dtype)
    numbered = torch.cat([image[None, :, None].expand(1, -1, boxes.shape[1]), rows])
    regions = numbered.permute(1, 2, 0).reshape(-1, 5)
    pooled: Tensor = roi_align(_below_each_other(levels), regions, side, sampling_ratio=_SAMPLES)
    return pooled


def _suitable_level(boxes: Tensor, side: float, count: int) -> Tensor:
    """Return the level of each box (N, P), int64: of twice the stride for twice the side.

    Args:
        boxes: Boxes (N, P, 4).
        side: Side of the smallest boxes of the first level.
        count: Number of levels.
    """
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=2)
    octave = (area.sqrt() / side).clamp(min=1e-6).log2()
    return octave.floor().clamp(0, count - 1).long()


def _below_each_other(levels: Sequence[Tensor]) -> Tensor:
    """Return the levels as one float32 feature map, each with a margin at its right and bottom."""
    width = max(features.shape[3] for features in levels) + _MARGIN
    parts = []
    for features in levels:
        part = functional.pad(features.float(), (0, _MARGIN, 0, _MARGIN), mode="replicate")
        parts.append(functional.pad(part, (0, width - part.shape[3])))
    return torch.cat(parts, dim=2)
