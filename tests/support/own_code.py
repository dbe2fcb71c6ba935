"""A user's own transform, losses and networks, which specifications name by import paths."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

augment = v2.Compose([v2.RandomRotation(10), v2.ColorJitter(brightness=0.3)])

NOT_CALLABLE = 3


def shrink(image: Tensor) -> Tensor:
    return image[:, 1:]


def as_float(image: Tensor) -> Tensor:
    return image / 255


def fails(image: Tensor) -> Tensor:
    raise KeyError(f"no {image.dtype}")


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Brier score (Brier 1950): squared distance of the probabilities from the one-hot label."""
    wanted = functional.one_hot(targets, logits.shape[1])
    return (logits.softmax(dim=1) - wanted).square().sum(dim=1)


def pixel_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean probability of the wrong classes of an image's pixels."""
    right = logits.softmax(dim=1).gather(1, targets.long().clamp(max=1)[:, None])
    return 1 - right.mean(dim=(1, 2, 3))


class WeightedCrossEntropy(nn.Module):
    """Has a tensor, which must be on the device of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 3.0]))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        weight = self.get_buffer("weight")
        return functional.cross_entropy(logits, targets, weight, reduction="none")


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits, targets)


def detached(logits: Tensor, targets: Tensor) -> Tensor:
    return squared_error(logits, targets).detach()


class TinyNet(nn.Module):
    """A network of the smallest useful size."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 8, kernel_size=5, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.head = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


class OtherArguments(TinyNet):
    def __init__(self, width: int) -> None:
        super().__init__(width, 3)


class NoHead(TinyNet):
    """Its last layer has other outputs than classes."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes + 1, in_channels)


class NotPerImage(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).sum(dim=0)
