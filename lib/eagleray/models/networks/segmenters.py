"""Networks with a logit for each label of every pixel, on the feature maps of any classifier.

    unet/resnet18     a decoder that joins each feature map with the one below it, enlarged
    fcn8s/vgg16       feature maps of the strides 32, 16 and 8, added up and enlarged by 8
    fcn32s/vgg16      the deepest feature map, enlarged by 32

U-Net is that of Ronneberger et al. 2015 ("U-Net: Convolutional Networks for Biomedical Image
Segmentation"), with normalisation by groups of channels, which does not depend on what shares a
batch, nor on the number of workers. The fully convolutional networks are those of Long et al. 2015
("Fully Convolutional Networks for Semantic Segmentation"), but for the order of two linear layers:
the convolution that scores the labels comes last, so that it is all that other labels replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from eagleray.core.errors import InputError
from eagleray.models.networks.backbone import Backbone, FeatureLevel
from eagleray.models.networks.feature_maps import extract_feature_maps, feature_levels
from eagleray.models.networks.layers import convolutions, enlarge

__all__ = [
    "DECODED_WIDTH",
    "FullyConvolutional",
    "UNet",
    "UNetDecoder",
    "build_fcn",
    "make_label_layer",
]

_WIDTH_PER_STRIDE = 8  # channels of a U-Net's decoder, between these bounds
DECODED_WIDTH = 16
"""Channels of a U-Net's decoder at the size of the image."""
_MAX_WIDTH = 256
_FCN_WIDTH = 32
_DEPTH = 2  # convolutions of a block of a U-Net


class UNetDecoder(nn.Module):
    """The part of a U-Net that other heads can share: a backbone and the decoder after it.

    Args:
        backbone: Maps images to feature maps by layer.
        levels: Its feature maps, the largest first.

    Attributes:
        decoded_channels: Channels of what `decode` returns.
    """

    def __init__(self, backbone: nn.Module, levels: Sequence[FeatureLevel]) -> None:
        super().__init__()
        self.backbone = backbone
        self._layers = [level.layer for level in levels]
        below = levels[-1].channels
        blocks: list[nn.Module] = []
        for level in reversed(levels[:-1]):
            width = _decoder_width(level.stride)
            blocks.append(convolutions(below + level.channels, width, _DEPTH))
            below = width
        self.decoder = nn.ModuleList(blocks)
        self.decoded_channels = below
        self._is_enlarged = levels[0].stride > 1

    def decode(self, images: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to features (N, decoded_channels, H, W)."""
        maps = self.backbone(images)
        features: Tensor = maps[self._layers[-1]]
        for block, layer in zip(self.decoder, reversed(self._layers[:-1]), strict=True):
            beside = maps[layer]
            features = block(torch.cat([enlarge(features, beside), beside], dim=1))
        return enlarge(features, images) if self._is_enlarged else features


class UNet(UNetDecoder):
    """A U-Net.

    Args:
        backbone: Maps images to feature maps by layer.
        levels: Its feature maps, the largest first.
        num_labels: Number of labels.
    """

    def __init__(
        self, backbone: nn.Module, levels: Sequence[FeatureLevel], num_labels: int
    ) -> None:
        super().__init__(backbone, levels)
        self.refine = convolutions(self.decoded_channels, DECODED_WIDTH, _DEPTH)
        self.head = make_label_layer(DECODED_WIDTH, num_labels)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_labels, H, W)."""
        logits: Tensor = self.head(self.refine(self.decode(images)))
        return logits


class FullyConvolutional(nn.Module):
    """A fully convolutional network (FCN).

    Args:
        backbone: Maps images to feature maps by layer.
        levels: The feature maps to add up, the largest first; each is twice as large as the next.
        num_labels: Number of labels.
    """

    def __init__(
        self, backbone: nn.Module, levels: Sequence[FeatureLevel], num_labels: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._layers = [level.layer for level in levels]
        self.lateral = nn.ModuleList(
            nn.Conv2d(level.channels, _FCN_WIDTH, kernel_size=1) for level in reversed(levels)
        )
        strides = [level.stride for level in reversed(levels)]
        factors = [low // high for low, high in zip(strides, [*strides[1:], 1], strict=True)]
        self.enlarge = nn.ModuleList(_enlarging_layer(_FCN_WIDTH, factor) for factor in factors)
        self.head = make_label_layer(_FCN_WIDTH, num_labels)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_labels, H, W)."""
        maps = self.backbone(images)
        deepest, *others = [
            lateral(maps[layer])
            for lateral, layer in zip(self.lateral, reversed(self._layers), strict=True)
        ]
        features: Tensor = deepest
        for layer, beside in zip(self.enlarge, [*others, images], strict=True):
            features = _fit(layer(features), beside)
            if beside is not images:
                features = features + beside
        logits: Tensor = self.head(features)
        return logits


def _decoder_width(stride: int) -> int:
    return min(_MAX_WIDTH, max(DECODED_WIDTH, _WIDTH_PER_STRIDE * stride))


def make_label_layer(width: int, num_labels: int) -> nn.Conv2d:
    """Return the layer that scores the labels: the last one, which other labels replace."""
    head = nn.Conv2d(width, num_labels, kernel_size=1)
    nn.init.zeros_(cast("Tensor", head.bias))
    return head


def _fit(features: Tensor, like: Tensor) -> Tensor:
    """Cut feature maps (N, F, h, w) to the sides of another tensor, or fill them up with zeros.

    The sides differ where a side of the input is not a multiple of 32.
    """
    height, width = features.shape[2], features.shape[3]
    return functional.pad(features, (0, like.shape[3] - width, 0, like.shape[2] - height))


def _enlarging_layer(channels: int, factor: int) -> nn.ConvTranspose2d:
    """Return a transposed convolution that begins as bilinear interpolation."""
    side = 2 * factor - factor % 2
    layer = nn.ConvTranspose2d(
        channels, channels, side, stride=factor, padding=factor // 2, groups=channels, bias=False
    )
    places = torch.arange(side, dtype=torch.float32)
    ramp = 1 - (places - (side - 1) / 2).abs() / factor
    with torch.no_grad():
        layer.weight.copy_((ramp[:, None] * ramp[None, :]).expand_as(layer.weight))
    return layer


def build_fcn(
    num_labels: int, backbone: Backbone, *, stride: int, initialize: bool
) -> FullyConvolutional:
    """Build an FCN with random weights.

    Args:
        num_labels: Number of labels.
        backbone: The classifier whose feature maps it uses.
        stride: Pixels of the input for a place of the largest feature map in use: 8 or 32.
        initialize: False skips slow initialisers of the backbone.

    Raises:
        InputError: If the classifier cannot be a backbone, or has no such feature maps.
    """
    levels = [level for level in feature_levels(backbone) if stride <= level.stride <= 32]
    wanted = [side for side in (8, 16, 32) if side >= stride]
    if [level.stride for level in levels] != wanted:
        strides = ", ".join(str(level.stride) for level in feature_levels(backbone))
        raise InputError(
            f"{backbone.name} cannot be the backbone of fcn{stride}s: it has feature maps "
            f"of the strides {strides}, and {', '.join(map(str, wanted))} are needed; choose "
            f"another one, or unet/{backbone.name}."
        )
    features = extract_feature_maps(backbone, levels, initialize=initialize)
    return FullyConvolutional(features, levels, num_labels)
