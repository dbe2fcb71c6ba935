"""Objects by their centres: maps of labels, of centres, and of offsets to the centres.

The activated outputs of an image are maps, float32 (C + 3, H, W): the probabilities of C labels,
the map of centres, and the offsets down and to the right to the centre of each pixel's object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame
from eagleray.tasks.annotation import Mask
from eagleray.tasks.base import ImageLosses, LossOptions, NetworkOutput, Outputs
from eagleray.tasks.exported import ExportedOutput
from eagleray.tasks.segmentation.class_maps import within_image
from eagleray.tasks.segmentation.grouping import NUM_PLACES, FoundObjects, group_pixels
from eagleray.tasks.segmentation.object_form import (
    GRID,
    MaskDetections,
    ObjectForm,
    ObjectLimits,
    ScoredSegments,
)
from eagleray.tasks.segmentation.object_masks import (
    OriginalObjects,
    encode_masks,
    objects_in_original,
)
from eagleray.tasks.segmentation.segments import find_segments

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CENTER_OUTPUTS", "CenterForm"]

CENTER_OUTPUTS = ("labels", "centers", "offsets")
"""Names of the network's outputs."""

_EXPORTED = ("probabilities", "centers", "offsets")
_OFFSET_SCALE = 1 / 64  # of offsets in a summary, which has probabilities beside them


@dataclass(frozen=True, slots=True)
class CenterForm(ObjectForm):
    """Maps of labels, centres and offsets.

    Attributes:
        labels: Labels of pixels in the order of the network's outputs, the background first.
        is_thing: Whether the objects of each of them are told apart.
        max_objects: Largest number of objects of an image that are told apart.
    """

    labels: tuple[str, ...]
    is_thing: npt.NDArray[np.bool_]
    max_objects: int

    @property
    def has_exports(self) -> bool:
        """Exports have the three maps."""
        return True

    @property
    def num_outputs(self) -> int:
        """One logit for each label of pixels."""
        return len(self.labels)

    @property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Maps of logits, of centres and of offsets."""
        counts = (self.num_outputs, 1, 2)
        return {
            name: (count, None, None) for name, count in zip(CENTER_OUTPUTS, counts, strict=True)
        }

    def losses(self, options: LossOptions) -> ImageLosses:
        """Return the losses of labels, centres and offsets; that of labels has the given name."""
        from eagleray.tasks.segmentation.center_loss import center_losses
        from eagleray.tasks.segmentation.loss import (
            cross_entropy_dice_losses,
            pixel_cross_entropies,
        )

        is_alone = options.name == "cross_entropy"
        of_labels = pixel_cross_entropies if is_alone else cross_entropy_dice_losses
        return lambda outputs, targets: center_losses(outputs, targets, of_labels)

    # --- outputs ---

    def activate(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return probabilities of labels, centres and offsets as one tensor (N, C + 3, H, W)."""
        return self.finish_exported(self.exported_outputs(outputs))

    def exported_outputs(self, outputs: Mapping[str, Tensor]) -> NetworkOutput:
        """Return the probabilities of labels, and the maps of centres and offsets as they are."""
        maps = outputs["labels"].softmax(dim=1), outputs["centers"], outputs["offsets"]
        return dict(zip(_EXPORTED, maps, strict=True))

    def finish_exported(self, outputs: NetworkOutput) -> Tensor:
        """Return all maps as one tensor (N, C + 3, H, W)."""
        import torch

        assert isinstance(outputs, Mapping)
        return torch.cat([outputs[name] for name in _EXPORTED], dim=1)

    def describe_exported(self, contract: ImageContract) -> tuple[ExportedOutput, ...]:
        """Return probabilities, centres and offsets of pixels."""
        meanings = (
            f"Probability of each label for each pixel of the input: {', '.join(self.labels)}.",
            "How near each pixel is to the centre of an object, about 0 to 1.",
            "Pixels down and to the right from each pixel to the centre of its object.",
        )
        counts = (self.num_outputs, 1, 2)
        return tuple(
            ExportedOutput(name, (count, *contract.size), meaning)
            for name, count, meaning in zip(_EXPORTED, counts, meanings, strict=True)
        )

    def num_activated(self, contract: ImageContract) -> int:
        """Return the number of pixels of all maps."""
        return (self.num_outputs + NUM_PLACES) * contract.size[0] * contract.size[1]

    def summarize(self, outputs: Tensor) -> Tensor:
        """Return the means of the maps in the cells of a grid (N, num_values)."""
        from torch.nn import functional

        scales = outputs.new_ones(outputs.shape[1])
        scales[-2:] = _OFFSET_SCALE
        means = functional.adaptive_avg_pool2d(outputs, GRID)
        return (means * scales[:, None, None]).flatten(1)

    @property
    def num_values(self) -> int:
        """A value for each map and cell of the grid."""
        return (self.num_outputs + NUM_PLACES) * GRID**2

    # --- objects ---

    def find_objects(self, outputs: Outputs, frame: Frame, limits: ObjectLimits) -> MaskDetections:
        """Group the pixels, and enlarge the objects to the original."""
        found, whole = self._find(outputs, frame)
        return _detections(found, whole.numbers, limits)

    def find_in_input(
        self, outputs: Outputs, ignored: npt.NDArray[np.bool_], limits: ObjectLimits
    ) -> MaskDetections:
        """Group the pixels; boxes are those of the pixels that count."""
        found = self._group(outputs)
        return _detections(found, np.where(ignored, 0, found.numbers), limits)

    def find_segments(self, outputs: Outputs, frame: Frame) -> ScoredSegments:
        """Group the pixels, and return the segments at the size of the original."""
        known = within_image(outputs, frame)
        found, whole = self._find(outputs, frame)
        segments = find_segments(whole.classes, whole.numbers, found.labels, self.is_thing)
        scores = [
            float(found.scores[thing - 1]) if thing else _score_of_stuff(known, found, label)
            for label, thing in zip(
                segments.labels.tolist(), segments.numbers.tolist(), strict=True
            )
        ]
        return ScoredSegments(segments, scores)

    def _group(self, outputs: Outputs) -> FoundObjects:
        return group_pixels(outputs, self.is_thing, max_objects=self.max_objects)

    def _find(self, outputs: Outputs, frame: Frame) -> tuple[FoundObjects, OriginalObjects]:
        """Return the objects of one image, and the pixels of each in the original."""
        found = self._group(np.ascontiguousarray(within_image(outputs, frame)))
        probabilities = outputs[: self.num_outputs]
        return found, objects_in_original(probabilities, found, self.is_thing, frame)


def _detections(
    found: FoundObjects, numbers: npt.NDArray[np.integer[Any]], limits: ObjectLimits
) -> MaskDetections:
    """Return the objects with pixels and a score.

    Args:
        found: The objects.
        numbers: Number of the object of each pixel, from 1; 0 for none (height, width).
        limits: Which objects are kept.
    """
    kept = MaskDetections.empty(limits)
    for number, one in encode_masks(numbers).items():
        score, label = found.scores[number - 1], found.labels[number - 1] - 1
        if score > 0 and score >= limits.min_score:
            x, y, width, height = one.box
            mask = Mask.model_construct(size=numbers.shape, counts=one.counts)
            kept.add(mask, (x, y, x + width, y + height), score, label)
    return kept


def _score_of_stuff(known: Outputs, found: FoundObjects, label: int) -> float:
    """Return the mean probability of a label over its pixels; 0 if it has none in the input."""
    values = known[label][found.classes == label]
    return float(values.mean()) if len(values) else 0.0
