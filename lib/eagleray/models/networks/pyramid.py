"""A feature pyramid of five levels: three maps of a classifier, and two coarser ones.

The maps that the classifier has are joined from the deepest to the largest (Lin et al. 2017,
"Feature Pyramid Networks for Object Detection"); each of the coarser ones is a convolution of the
map before it (Lin et al. 2017, "Focal Loss for Dense Object Detection").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from eagleray.models.networks.backbone import FeatureLevel
from eagleray.models.networks.layers import group_norm

__all__ = ["Pyramid", "pyramid_width"]

_MAX_WIDTH = 256  # as in the papers
_STEP = 8


def pyramid_width(levels: Sequence[FeatureLevel]) -> int:
    """Return the channels of a pyramid: 256, or those of the deepest map if it has fewer."""
    return max(_STEP, min(_MAX_WIDTH, levels[-1].channels // _STEP * _STEP))


class Pyramid(nn.Module):
    """A feature pyramid of five levels.

    Args:
        levels: Three feature maps of a classifier, the largest first.
        width: Number of channels of each level.
    """

    def __init__(self, levels: Sequence[FeatureLevel], width: int) -> None:
        super().__init__()
        self.maps = FeaturePyramidNetwork(
            [level.channels for level in levels],
            width,
            extra_blocks=LastLevelP6P7(width, width),
            norm_layer=group_norm,
        )
        self._layers = [level.layer for level in levels]
        last = levels[-1].stride
        self.strides = [*(level.stride for level in levels), 2 * last, 4 * last]
        """Pixels of the input for a place of each level."""

    def forward(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Map feature maps by layer to the levels (N, width, h, w), the largest first."""
        return list(self.maps({layer: maps[layer] for layer in self._layers}).values())
