"""Small random changes to training images, so that a network learns what does not matter."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

__all__ = ["augment_batch"]


def augment_batch(images: Tensor, *, shift: float, flip: bool) -> Tensor:
    """Change each image of a batch on its own, drawing from torch's random state.

    Args:
        images: uint8 tensor (N, H, W, C).
        shift: Farthest move along each axis, as a share of the longer side; what an image leaves
            is black.
        flip: Mirror every second image on average.

    Returns:
        uint8 tensor (N, H, W, C).
    """
    height, width = images.shape[1:3]
    padding = round(shift * max(height, width))
    steps: list[torch.nn.Module] = []
    if padding:
        steps.append(v2.RandomCrop((height, width), padding=padding))
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if not steps:
        return images
    change = v2.Compose(steps)
    changed = [change(image) for image in images.permute(0, 3, 1, 2)]
    return torch.stack(changed).permute(0, 2, 3, 1)
