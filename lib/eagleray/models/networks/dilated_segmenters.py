"""Segmentation networks on a dilated classifier, whose deepest feature map has the stride 16.

    deeplabv3/resnet50              atrous spatial pyramid pooling on the deepest feature map
    lraspp/mobilenet_v3_large       a light head on the deepest feature map and one of the stride 8

DeepLabv3 is that of Chen et al. 2017 ("Rethinking Atrous Convolution for Semantic Image
Segmentation"), with the head of torchvision, and LR-ASPP that of Howard et al. 2019 ("Searching for
MobileNetV3"). Both heads are normalised by groups of channels instead of batches, and neither has
dropout, so that the number of workers changes nothing. The two layers of LR-ASPP that score the
labels, one for each feature map, are one layer on both maps side by side, which is the same sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from eagleray.core.errors import InputError
from eagleray.models.networks.backbone import Backbone, FeatureLevel
from eagleray.models.networks.feature_maps import extract_feature_maps, feature_levels
from eagleray.models.networks.layers import enlarge, group_norm, with_group_norm
from eagleray.models.networks.segmenters import make_label_layer

__all__ = ["LRASPP", "DeepLabV3", "build_deeplabv3", "build_lraspp"]

_STRIDE = 16
_RATES = (6, 12, 18)  # dilations of the pyramid pooling, as in the paper for the stride 16
_LRASPP_WIDTH = 128


class DeepLabV3(nn.Module):
    """A DeepLabv3.

    Args:
        backbone: Maps images to feature maps by layer.
        level: The deepest feature map.
        num_labels: Number of labels.
    """

    def __init__(self, backbone: nn.Module, level: FeatureLevel, num_labels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self._layer = level.layer
        self.head = with_group_norm(DeepLabHead(level.channels, num_labels, _RATES))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_labels, H, W)."""
        logits = self.head(self.backbone(images)[self._layer])
        return enlarge(logits, images)


class LRASPP(nn.Module):
    """A network with lite reduced atrous spatial pyramid pooling.

    Args:
        backbone: Maps images to feature maps by layer.
        levels: A feature map with details, and the deepest one.
        num_labels: Number of labels.
    """

    def __init__(
        self, backbone: nn.Module, levels: Sequence[FeatureLevel], num_labels: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        low, high = levels
        self._layers = low.layer, high.layer
        self.features = nn.Sequential(
            nn.Conv2d(high.channels, _LRASPP_WIDTH, kernel_size=1, bias=False),
            group_norm(_LRASPP_WIDTH),
            nn.ReLU(),
        )
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(high.channels, _LRASPP_WIDTH, kernel_size=1, bias=False),
            nn.Sigmoid(),
        )
        self.head = make_label_layer(low.channels + _LRASPP_WIDTH, num_labels)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_labels, H, W)."""
        maps = self.backbone(images)
        low, high = (maps[layer] for layer in self._layers)
        context = enlarge(self.features(high) * self.scale(high), low)
        return enlarge(self.head(torch.cat([low, context], dim=1)), images)


def build_deeplabv3(num_labels: int, backbone: Backbone, *, initialize: bool) -> DeepLabV3:
    """Build a DeepLabv3 with random weights.

    Args:
        num_labels: Number of labels.
        backbone: The classifier whose deepest feature map it uses.
        initialize: False skips slow initialisers of the backbone.

    Raises:
        InputError: If the classifier cannot be a backbone.
    """
    level = feature_levels(backbone)[-1]
    features = extract_feature_maps(backbone, [level], initialize=initialize, max_stride=_STRIDE)
    return DeepLabV3(features, level, num_labels)


def build_lraspp(num_labels: int, backbone: Backbone, *, initialize: bool) -> LRASPP:
    """Build an LR-ASPP with random weights.

    Args:
        num_labels: Number of labels.
        backbone: The classifier whose feature maps it uses.
        initialize: False skips slow initialisers of the backbone.

    Raises:
        InputError: If the classifier cannot be a backbone, or has no feature map with details.
    """
    found = feature_levels(backbone)
    high = found[-1]
    finer = [level for level in found if level.stride < min(high.stride, _STRIDE)]
    if not finer:
        raise InputError(
            f"{backbone.name} cannot be the backbone of an LR-ASPP: it has no feature map "
            f"of a stride below {_STRIDE}; choose another one, such as resnet18."
        )
    levels = [finer[-1], high]
    features = extract_feature_maps(backbone, levels, initialize=initialize, max_stride=_STRIDE)
    return LRASPP(features, levels, num_labels)
