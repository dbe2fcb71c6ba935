"""A network that tells objects apart: classes of pixels, centres of objects, and offsets to them.

    panoptic/resnet18    the decoder of unet/resnet18 with three heads

It is that of Cheng et al. 2020 ("Panoptic-DeepLab: A Simple, Strong, and Fast Baseline for
Bottom-Up Panoptic Segmentation") with the decoder of a U-Net in place of DeepLab's: small objects
need feature maps of the image's size, and the U-Net's are normalised by groups of channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from eagleray.models.networks.backbone import FeatureLevel
from eagleray.models.networks.layers import convolutions
from eagleray.models.networks.segmenters import DECODED_WIDTH, UNetDecoder, make_label_layer

__all__ = ["PanopticDeepLab"]

_DEPTH = 2  # convolutions before each head


class PanopticDeepLab(UNetDecoder):
    """Panoptic-DeepLab on the decoder of a U-Net.

    Args:
        backbone: Maps images to feature maps by layer.
        levels: Its feature maps, the largest first.
        num_labels: Number of labels.
    """

    def __init__(
        self, backbone: nn.Module, levels: Sequence[FeatureLevel], num_labels: int
    ) -> None:
        super().__init__(backbone, levels)
        self.place = convolutions(self.decoded_channels, DECODED_WIDTH, _DEPTH)
        self.centers = make_label_layer(DECODED_WIDTH, 1)
        self.offsets = make_label_layer(DECODED_WIDTH, 2)
        self.refine = convolutions(self.decoded_channels, DECODED_WIDTH, _DEPTH)
        self.head = make_label_layer(
            DECODED_WIDTH, num_labels
        )  # the last one, which scores the labels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalised images (N, C, H, W) to what their pixels are and belong to.

        Returns:
            `labels`, logits (N, num_labels, H, W); `centers`, how near the centre of an object is,
            about 0 to 1 (N, 1, H, W); `offsets`, pixels down and to the right from each pixel to
            the centre of its object (N, 2, H, W).
        """
        features = self.decode(images)
        placed = self.place(features)
        return {
            "labels": self.head(self.refine(features)),
            "centers": self.centers(placed),
            "offsets": self.offsets(placed),
        }
