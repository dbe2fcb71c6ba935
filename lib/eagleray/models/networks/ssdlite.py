"""SSDlite: a light detector with anchors, on the feature maps of any convolutional classifier.

Six feature maps, the two deepest ones of the classifier and four that are made of them, have six
anchors at each place (Liu et al. 2016, "SSD: Single Shot MultiBox Detector"), and predictions are
made by separable convolutions (Sandler et al. 2018, "MobileNetV2"). The sizes of the anchors are
those of torchvision's SSDlite: shares of the input from 0.2 to 0.95.

Labels exclude each other and the background, by a softmax. What is returned as a logit is that of
the probability of the softmax. The layers that score are shared by all anchors and come behind
features of each anchor, so that the last layer has one output for each label, and is all that other
labels replace.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eagleray.models.networks.anchors import anchors_of, decode, rows_of, shape_anchors
from eagleray.models.networks.backbone import FeatureLevel
from eagleray.models.networks.layers import group_norm, softmax_logits

__all__ = ["SSDLite"]

_EXTRA_WIDTHS = (512, 256, 256, 128)
_MIN_SHARE, _MAX_SHARE = 0.2, 0.95  # sides of anchors, of the input's
_RATIOS = (0.5, 2.0, 1 / 3, 3.0)  # of height to width, beside two squares
_NUM_SHAPES = len(_RATIOS) + 2
_FEATURES = 64  # of an anchor, by which its labels are scored
_DELTA_UNITS = (0.1, 0.1, 0.2, 0.2)  # of the outputs, as in SSD


class SSDLite(nn.Module):
    """A light dense detector with anchors.

    Args:
        backbone: Maps images to feature maps by layer.
        levels: The two feature maps to use, the larger one first.
        num_labels: Number of labels.
    """

    def __init__(
        self, backbone: nn.Module, levels: Sequence[FeatureLevel], num_labels: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._layers = [level.layer for level in levels]
        widths = [level.channels for level in levels]
        extras: list[nn.Module] = []
        for width in _EXTRA_WIDTHS:
            extras.append(_extra(widths[-1], width))
            widths.append(width)
        self.extras = nn.ModuleList(extras)
        self.boxes = nn.ModuleList(_separable(width, _NUM_SHAPES * 4) for width in widths)
        self.features = nn.ModuleList(
            _separable(width, _NUM_SHAPES * _FEATURES) for width in widths
        )
        self.background = nn.Linear(_FEATURES, 1)
        # The labels come last: the last layer of a network is what another set of labels replaces.
        self.labels = nn.Linear(_FEATURES, num_labels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict at every anchor.

        Args:
            images: Normalised images (N, C, H, W).

        Returns:
            `boxes` (N, A, 4) as x1, y1, x2, y2 in pixels of the input, `logits` (N, A, num_labels)
            and `background` (N, A), which is a logit too; `anchors` (N, A, 4) like boxes; and
            `deltas` (N, A, 4), by which the boxes differ from them, as `networks.anchors` describes
            them.
        """
        maps = self._maps(images)
        raw = torch.cat(
            [rows_of(one(m), 4) for one, m in zip(self.boxes, maps, strict=True)], dim=1
        )
        features = torch.cat(
            [rows_of(one(m), _FEATURES) for one, m in zip(self.features, maps, strict=True)], dim=1
        )
        scores = torch.cat([self.background(features), self.labels(features)], dim=2).float()
        logits = softmax_logits(scores)
        anchors = _anchors(maps, images)
        deltas = raw.float() * raw.new_tensor(_DELTA_UNITS).float()
        return {
            "boxes": decode(deltas, anchors),
            "logits": logits[..., 1:],
            "background": logits[..., 0],
            "anchors": anchors.expand(images.shape[0], -1, -1),
            "deltas": deltas,
        }

    def _maps(self, images: Tensor) -> list[Tensor]:
        found = self.backbone(images)
        maps = [found[layer] for layer in self._layers]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps


def _separable(channels: int, outputs: int) -> nn.Sequential:
    """Return a convolution of each channel, and one of all channels of a place."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False),
        nn.GroupNorm(1, channels),  # a classifier may have any number of channels
        nn.ReLU6(),
        nn.Conv2d(channels, outputs, kernel_size=1),
    )


def _extra(channels: int, width: int) -> nn.Sequential:
    """Return what makes a feature map of half the sides."""
    inner = width // 2
    return nn.Sequential(
        nn.Conv2d(channels, inner, kernel_size=1, bias=False),
        group_norm(inner),
        nn.ReLU6(),
        nn.Conv2d(inner, inner, kernel_size=3, stride=2, padding=1, groups=inner, bias=False),
        group_norm(inner),
        nn.ReLU6(),
        nn.Conv2d(inner, width, kernel_size=1, bias=False),
        group_norm(width),
        nn.ReLU6(),
    )


def _anchors(maps: Sequence[Tensor], images: Tensor) -> Tensor:
    """Return the anchors (A, 4) of all maps, in pixels of the input."""
    height, width = images.shape[2:]
    step = (_MAX_SHARE - _MIN_SHARE) / (len(maps) - 1)
    shares = [*(_MIN_SHARE + step * place for place in range(len(maps))), 1.0]
    found = []
    for features, share, larger in zip(maps, shares[:-1], shares[1:], strict=True):
        shapes = [
            *shape_anchors(share, (1.0,)),
            *shape_anchors((share * larger) ** 0.5, (1.0,)),
            *shape_anchors(share, _RATIOS),
        ]
        pixels = [(across * width, down * height) for across, down in shapes]
        rows, columns = features.shape[2:]
        found.append(anchors_of(features, (height / rows, width / columns), pixels))
    return torch.cat(found)
