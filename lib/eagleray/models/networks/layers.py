"""Layers that networks on the feature maps of a classifier share.

Normalisation is by groups of channels, which does not depend on what shares a batch, nor on the
number of workers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "convolutions",
    "enlarge",
    "group_norm",
    "points_of",
    "softmax_logits",
    "with_group_norm",
]

_GROUP = 8  # channels of a group of the normalisation
_MIN_ABSENCE = 1e-6  # keeps logits finite


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the normalisation of a number of channels, which is a multiple of 8."""
    return nn.GroupNorm(channels // _GROUP, channels)


def convolutions(channels: int, width: int, depth: int) -> nn.Sequential:
    """Return convolutions of 3 x 3, each with normalisation and ReLU.

    Args:
        channels: Channels of the input.
        width: Channels of each convolution, a multiple of 8.
        depth: Number of convolutions.
    """
    layers: list[nn.Module] = []
    for inputs in (channels, *(width,) * (depth - 1)):
        convolution = nn.Conv2d(inputs, width, kernel_size=3, padding=1, bias=False)
        layers += [convolution, group_norm(width), nn.ReLU()]
    return nn.Sequential(*layers)


def with_group_norm(module: nn.Module) -> nn.Module:
    """Replace batch normalisation by normalisation of groups, and leave dropout out, in place.

    Both would let the loss depend on the number of workers; batch normalisation also fails on the
    single place that global pooling leaves of a batch of one image.
    """
    for name, layer in module.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            setattr(module, name, group_norm(layer.num_features))
        elif isinstance(layer, nn.Dropout):
            setattr(module, name, nn.Identity())
        else:
            with_group_norm(layer)
    return module


def enlarge(features: Tensor, like: Tensor) -> Tensor:
    """Enlarge feature maps (N, F, h, w) to the sides of another tensor (N, …, H, W)."""
    return functional.interpolate(
        features, size=like.shape[2:], mode="bilinear", align_corners=False
    )


def points_of(features: Tensor, stride: float) -> Tensor:
    """Return x, y and stride of every point of a feature map (N, F, h, w), as (h·w, 3)."""
    height, width = features.shape[2:]
    device = features.device
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) * stride
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) * stride
    down, across = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([across, down, torch.full_like(across, stride)], dim=2).reshape(-1, 3)


def softmax_logits(scores: Tensor) -> Tensor:
    """Return the logits of the probabilities that a softmax over the last axis gives."""
    log_shares = scores.log_softmax(dim=-1)
    return log_shares - (1 - log_shares.exp()).clamp(min=_MIN_ABSENCE).log()
