"""Small random changes to training images, so that a network learns what does not matter."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

__all__ = ["Augmentation", "augment_batch"]

Augmentation = Literal["none", "shift", "shift-flip"]

_SHIFT_SHARE = 8  # an image may move by an eighth of its side: 4 pixels of 32


def augment_batch(images: Tensor, kind: Augmentation) -> Tensor:
    """Change each image of a batch on its own, drawing from torch's random state.

    Args:
        images: uint8 tensor (N, H, W, C).
        kind: `shift` moves an image by up to an eighth of its side, filling with black;
            `shift-flip` also mirrors every second one on average.

    Returns:
        uint8 tensor (N, H, W, C).
    """
    if kind == "none":
        return images
    height, width = images.shape[1:3]
    steps = [v2.RandomCrop((height, width), padding=max(height, width) // _SHIFT_SHARE)]
    if kind == "shift-flip":
        steps.append(v2.RandomHorizontalFlip())
    change = v2.Compose(steps)
    changed = [change(image) for image in images.permute(0, 3, 1, 2)]
    return torch.stack(changed).permute(0, 2, 3, 1)
