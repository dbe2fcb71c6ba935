"""The loss of semantic segmentation: cross-entropy of pixels, and the soft Dice of labels.

Each image has a loss of its own, so that it is the same for any number of workers. Dice is that of
Milletari et al. 2016 ("V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
Segmentation"), without squares, as the mean over the labels that the image has; it does not depend
on how small these are.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from eagleray.tasks.segmentation.class_maps import IGNORED

__all__ = ["cross_entropy_dice_losses", "pixel_cross_entropies"]

_SMOOTHING = 1.0  # pixels


def pixel_cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of each image's pixels; 0 for an image without any.

    Args:
        outputs: Logits (N, C, H, W).
        targets: Class maps, uint8 (N, H, W); `IGNORED` pixels do not count.

    Returns:
        float32 tensor (N,).
    """
    losses = functional.cross_entropy(
        outputs, targets.long(), ignore_index=IGNORED, reduction="none"
    )
    num_pixels = (targets != IGNORED).sum(dim=(1, 2)).clamp(min=1)
    return losses.sum(dim=(1, 2)) / num_pixels


def cross_entropy_dice_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of cross-entropy and soft Dice loss of each image.

    Args:
        outputs: Logits (N, C, H, W).
        targets: Class maps, uint8 (N, H, W); `IGNORED` pixels do not count.

    Returns:
        float32 tensor (N,).
    """
    num_labels = outputs.shape[1]
    counted = targets != IGNORED
    true = functional.one_hot(targets.long() * counted, num_labels).permute(0, 3, 1, 2)
    true = true * counted[:, None]
    probabilities = outputs.softmax(dim=1) * counted[:, None]
    shared = (probabilities * true).sum(dim=(2, 3))
    sizes, predicted = true.sum(dim=(2, 3)), probabilities.sum(dim=(2, 3))
    dice = (2 * shared + _SMOOTHING) / (sizes + predicted + _SMOOTHING)
    is_there = sizes > 0
    lost = ((1 - dice) * is_there).sum(dim=1) / is_there.sum(dim=1).clamp(min=1)
    return pixel_cross_entropies(outputs, targets) + lost
