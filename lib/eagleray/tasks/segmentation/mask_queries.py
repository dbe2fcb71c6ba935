"""What a network of mask queries predicts: for each query the scores of labels, and a mask.

Source: Cheng et al. 2021, "Per-Pixel Classification is Not All You Need for Semantic Segmentation"
(MaskFormer), and Cheng et al. 2022 (Mask2Former). The activated outputs of an image are one array,
float32 (Q, C + 1 + h * w): the probabilities of C labels and of no object, then the logits of the
mask, row by row. The masks show the whole image, whatever its aspect ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QUERY_OUTPUTS", "MaskQueries"]

QUERY_OUTPUTS = ("labels", "masks")
"""Names of the network's outputs: logits (N, Q, C + 1), and logits (N, Q, h, w)."""

Floats = npt.NDArray[np.float32]
Side = Annotated[int, Field(ge=1, le=8192)]


class MaskQueries(BaseModel):
    """The form of the outputs of a network of mask queries.

    Attributes:
        count: Number of queries Q.
        size: Height and width of the masks (h, w).
        enlarged: Height and width to which the masks are enlarged before anything is made of them;
            None for their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    count: Annotated[int, Field(ge=1, le=1000)]
    size: tuple[Side, Side]
    enlarged: tuple[Side, Side] | None = None

    def shapes(self, num_labels: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the outputs for one image, by name."""
        shapes = (self.count, num_labels + 1), (self.count, *self.size)
        return dict(zip(QUERY_OUTPUTS, shapes, strict=True))

    def activate(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs of a network as one tensor (N, Q, C + 1 + h * w)."""
        import torch

        labels, masks = (outputs[name] for name in QUERY_OUTPUTS)
        return torch.cat([labels.softmax(dim=-1), masks.flatten(2)], dim=-1)

    def split(self, outputs: Floats) -> tuple[Floats, Floats]:
        """Return the probabilities (Q, C + 1) and the masks (Q, h, w) of one image."""
        length = outputs.shape[-1] - self.size[0] * self.size[1]
        return outputs[:, :length], outputs[:, length:].reshape(-1, *self.size)

    def enlarge(self, masks: Floats) -> Floats:
        """Return masks (K, h, w) at the size at which they are read, by bilinear interpolation."""
        if self.enlarged is None or self.enlarged == self.size:
            return masks
        return resize_maps(masks, *self.enlarged)

    def summarize(self, outputs: Tensor, cells: int) -> Tensor:
        """Return the mean scores of labels in the cells of a grid (N, C * cells ** 2).

        The score of a label at a pixel is the sum over queries of the probability of the label
        times that of the mask.
        """
        from torch.nn import functional

        length = outputs.shape[-1] - self.size[0] * self.size[1]
        masks = outputs[..., length:].reshape(*outputs.shape[:2], *self.size).sigmoid()
        means = functional.adaptive_avg_pool2d(masks, cells).flatten(2)
        return (outputs[..., : length - 1].transpose(1, 2) @ means).flatten(1)


def resize_maps(maps: Floats, height: int, width: int) -> Floats:
    """Return maps (K, h, w) at another size, by bilinear interpolation between pixel centres."""
    import cv2

    resized = [cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in maps]
    found: npt.NDArray[Any] = np.stack(resized) if resized else np.empty((0, height, width))
    return found.astype(np.float32, copy=False)
