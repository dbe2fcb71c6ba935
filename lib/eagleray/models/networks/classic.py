"""LeNet-5, ZFNet and the small residual networks, which torchvision does not have."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["LeNet5", "SmallResNet", "ZFNet"]


class LeNet5(nn.Module):
    """LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998, section II.B) for 32 x 32 images.

    It differs from the paper as usual: S2 connects fully to C3, and the output is linear (a softmax
    follows) in place of radial basis functions. The trainable subsampling of the paper is an
    average pool.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, kernel_size=5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.Tanh(),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120),
            nn.Tanh(),
            nn.Linear(120, 84),
            nn.Tanh(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (N, C, 32, 32) to logits (N, num_classes)."""
        logits: torch.Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class ZFNet(nn.Module):
    """ZFNet (Zeiler and Fergus 2014, figure 3): AlexNet with a finer first layer.

    An adaptive pool before the classifier lets it take other sizes than 224 x 224, as torchvision's
    AlexNet does.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 96, kernel_size=7, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
            nn.Conv2d(96, 256, kernel_size=5, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
            nn.Conv2d(256, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.pool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (N, C, H, W) to logits (N, num_classes)."""
        logits: torch.Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return logits


class SmallResNet(nn.Module):
    """The residual network for 32 x 32 images (He, Zhang, Ren, Sun 2016, section 4.2).

    Depth is 6n + 2: three stages of n blocks at 32, 16 and 8 pixels, over a 3 x 3 stem without
    pooling. Shortcuts that change shape are projections, as in the paper's option B.

    Args:
        num_blocks: Blocks in each stage (n): 3 makes ResNet-20.
        width: Channels of the first stage; the paper's networks have 16.
    """

    def __init__(
        self, num_blocks: int, width: int = 16, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        channels = width
        blocks: list[nn.Module] = []
        for stage in range(3):
            stage_width = width * 2**stage
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(_residual_block(channels, stage_width, stride))
                channels = stage_width
        self.stages = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (N, C, H, W) to logits (N, num_classes)."""
        features = self.pool(self.stages(self.stem(images))).flatten(1)
        logits: torch.Tensor = self.fc(features)
        return logits


def _residual_block(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock  # takes seconds to import that few need

    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    block: nn.Module = BasicBlock(in_channels, out_channels, stride, shortcut)
    return block
