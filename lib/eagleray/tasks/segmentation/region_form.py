"""Objects by boxes with small masks: what Mask R-CNN returns (He et al. 2017).

The activated outputs of an image are rows, float32 (M, 6 + S * S): a detection as in
`tasks.detection.objects`, in pixels of the input, and the probabilities of the places of its box,
row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame
from eagleray.tasks.annotation import Mask
from eagleray.tasks.base import ImageLosses, LossOptions, Outputs
from eagleray.tasks.detection.objects import ROW, detections_in_original
from eagleray.tasks.segmentation.object_form import (
    GRID,
    MaskDetections,
    ObjectForm,
    ObjectLimits,
)
from eagleray.tasks.segmentation.pasting import encode_pasted, paste_mask
from eagleray.tasks.segmentation.region_masks import REGION_OUTPUTS, RegionMasks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RegionForm"]


@dataclass(frozen=True, slots=True)
class RegionForm(ObjectForm):
    """Boxes with labels and scores, and a mask in each.

    Attributes:
        regions: Numbers and sizes of the outputs.
        num_labels: Number of labels.
    """

    regions: RegionMasks
    num_labels: int

    @property
    def num_outputs(self) -> int:
        """One logit for each label."""
        return self.num_labels

    @property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Detections and masks."""
        count, side = self.regions.count, self.regions.side
        return dict(zip(REGION_OUTPUTS, ((count, ROW), (count, side, side)), strict=True))

    def losses(self, options: LossOptions) -> ImageLosses:
        """Return the losses of a detector with two stages, and that of masks."""
        from eagleray.tasks.segmentation.region_loss import region_losses

        return region_losses

    # --- outputs ---

    def activate(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return detections, and probabilities of masks, as one tensor (N, M, 6 + S * S)."""
        import torch

        detections, masks = (outputs[name] for name in REGION_OUTPUTS)
        return torch.cat([detections, masks.flatten(2).sigmoid()], dim=2)

    def num_activated(self, contract: ImageContract) -> int:
        """Return the number of values of all rows."""
        return self.regions.count * (ROW + self.regions.side**2)

    def summarize(self, outputs: Tensor) -> Tensor:
        """Return the scores of labels in the cells of a grid (N, num_values).

        A detection adds its score, times the mean probability of its mask, times the share of the
        cell that its box covers.
        """
        from torch.nn import functional

        height, width = self.regions.size
        boxes, scores, labels = outputs[..., :4], outputs[..., 4], outputs[..., 5]
        across, down = (
            _covered(boxes[..., first], boxes[..., first + 2], side)
            for first, side in ((0, width), (1, height))
        )
        weights = scores * outputs[..., ROW:].mean(dim=2)
        is_label = functional.one_hot(labels.nan_to_num().long(), self.num_labels).to(scores.dtype)
        rows = is_label * weights[..., None]
        cells = down[..., :, None] * across[..., None, :]
        return (rows.transpose(1, 2) @ cells.flatten(2)).flatten(1)

    @property
    def num_values(self) -> int:
        """A value for each label and cell of the grid."""
        return self.num_labels * GRID**2

    # --- objects ---

    def find_objects(self, outputs: Outputs, frame: Frame, limits: ObjectLimits) -> MaskDetections:
        """Paste the masks of the detections into the original; the boxes are the detections'."""
        rows, kept = detections_in_original(outputs[:, :ROW], frame), MaskDetections.empty(limits)
        scales = np.array([frame.scale_x, frame.scale_y] * 2)
        places = (outputs[:, :4] + np.array([frame.left, frame.top] * 2)) * scales
        masks = outputs[:, ROW:].reshape(len(outputs), self.regions.side, -1)
        size = frame.height, frame.width
        for row, place, mask in zip(rows, places, masks, strict=True):
            if row[4] <= 0 or row[4] < limits.min_score or len(kept.masks) == limits.max_objects:
                continue
            pasted = paste_mask(mask, place, *size)
            if pasted.pixels.any():
                counts = encode_pasted(pasted, *size)
                found = Mask.model_construct(size=size, counts=counts)
                kept.add(found, tuple(row[:4]), row[4], row[5])
        return kept


def _covered(low: Tensor, high: Tensor, side: int) -> Tensor:
    """Return which share of each cell of a side of the input is between two places (N, M, GRID)."""
    import torch

    edges = torch.linspace(0, side, GRID + 1, device=low.device, dtype=low.dtype)
    first = torch.maximum(low[..., None], edges[:-1])
    last = torch.minimum(high[..., None], edges[1:])
    return (last - first).clamp(min=0) * (GRID / side)
