"""Anchors: boxes of a few shapes at every place of a feature map, which a detector changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["anchors_of", "decode", "rows_of", "shape_anchors"]

_MAX_LOG_FACTOR = math.log(1000 / 16)  # keeps boxes finite


def anchors_of(
    features: Tensor, strides: tuple[float, float], shapes: Sequence[tuple[float, float]]
) -> Tensor:
    """Return the anchors of a feature map, place by place and at each in the order of the shapes.

    Args:
        features: Feature map (N, F, h, w).
        strides: Pixels of the input for a place, down and across.
        shapes: Width and height of each anchor of a place, in pixels of the input.

    Returns:
        float32 tensor (h·w·len(shapes), 4) of x1, y1, x2, y2 in pixels of the input.
    """
    device = features.device
    y, x = (
        (torch.arange(length, dtype=torch.float32, device=device) + 0.5) * stride
        for length, stride in zip(features.shape[2:], strides, strict=True)
    )
    down, across = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([across, down], dim=2).reshape(-1, 1, 2)
    halves = torch.tensor(shapes, dtype=torch.float32, device=device)[None] / 2
    return torch.cat([centres - halves, centres + halves], dim=2).reshape(-1, 4)


def shape_anchors(side: float, ratios: Sequence[float]) -> list[tuple[float, float]]:
    """Return width and height of boxes with one area, and these ratios of height to width."""
    return [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for ratio in ratios]


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Return boxes as x1, y1, x2, y2 from how they differ from their anchors.

    Args:
        deltas: (N, A, 4): the shifts of the centre, across and down, in sides of the anchor, and
            the logarithms of the factors of its width and height.
        anchors: (A, 4), or (N, A, 4).
    """
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * sides
    halves = deltas[..., 2:].clamp(max=_MAX_LOG_FACTOR).exp() * sides / 2
    return torch.cat([centres - halves, centres + halves], dim=2)


def rows_of(outputs: Tensor, length: int) -> Tensor:
    """Return the outputs of a layer (N, count · length, h, w) as rows (N, h·w·count, length).

    The rows are in the order of the anchors.
    """
    return outputs.permute(0, 2, 3, 1).reshape(outputs.shape[0], -1, length)
