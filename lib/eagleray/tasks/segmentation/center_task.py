"""What tasks share whose network tells objects apart: by their centres, or by mask queries.

The activated outputs of an image are maps, float32 (C + 3, H, W): the probabilities of C labels,
the map of centres, and the offsets down and to the right to the centre of each pixel's object. A
network of another program may have mask queries instead, see `mask_queries`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame, Placement
from eagleray.tasks.base import (
    ImageLosses,
    LossOptions,
    NetworkOutput,
    Outputs,
    Targets,
    Task,
    only_tensor,
)
from eagleray.tasks.exported import ExportedOutput
from eagleray.tasks.segmentation.class_maps import within_image
from eagleray.tasks.segmentation.grouping import NUM_PLACES, FoundObjects, group_pixels
from eagleray.tasks.segmentation.mask_queries import MaskQueries
from eagleray.tasks.segmentation.object_maps import ObjectMaps, join_object_maps, move_object_map
from eagleray.tasks.segmentation.object_masks import OriginalObjects, objects_in_original

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CenterTask"]

_GRID = 8  # cells of each side of a summary
_EXPORTED = ("probabilities", "centers", "offsets")
_OFFSET_SCALE = 1 / 64  # of offsets in a summary, which has probabilities beside them


class CenterTask(Task):
    """A task with a network of labels, centres and offsets, beside another task's answers.

    Attributes:
        max_objects: Largest number of objects of an image that are told apart.
        queries: Form of the outputs of a network of mask queries; None for one of centres.
    """

    losses: ClassVar[tuple[str, ...]] = ("cross_entropy_dice", "cross_entropy")
    output_names: ClassVar[tuple[str, ...] | None] = ("labels", "centers", "offsets")
    export_example: ClassVar[tuple[str, ...]] = ("maps", "regions")
    export_note: ClassVar[str] = (
        "Grouping pixels into objects is not part of the model: a peak of `centers` is an object, "
        "and each pixel of a label belongs to the peak nearest to where its offset points. "
        "`group_pixels` in `predict.py` does it with the settings below, and `to_original` maps "
        "the objects to the image file."
    )
    similarity_name: ClassVar[str | None] = "panoptic quality"
    quantized_similarity: ClassVar[float] = 0.95  # a doubtful object counts as a whole
    default_architecture: ClassVar[str] = "panoptic/resnet18"
    measures_training: ClassVar[bool] = False

    max_objects: Annotated[int, Field(ge=1, le=1000)] = 200
    queries: MaskQueries | None = None

    @property
    @abstractmethod
    def pixel_labels(self) -> tuple[str, ...]:
        """Labels of pixels in the order of the network's outputs, the background first."""

    @property
    @abstractmethod
    def apart(self) -> tuple[str, ...]:
        """Those of the labels whose objects are told apart."""

    @property
    def query_labels(self) -> tuple[str, ...]:
        """Labels that a query may have."""
        return self.apart

    @property
    def num_outputs(self) -> int:
        """One logit for each label of pixels."""
        return len(self.pixel_labels)

    @property
    def network_outputs(self) -> dict[str, tuple[int | None, ...]]:
        """Maps of logits, of centres and of offsets; or the scores and masks of queries."""
        if self.queries is not None:
            return {**self.queries.shapes(len(self.query_labels))}
        shapes = (self.num_outputs, 1, 2)
        names = self.output_names or ()
        return {name: (count, None, None) for name, count in zip(names, shapes, strict=True)}

    @property
    def has_exports(self) -> bool:
        """Whether the network returns maps of labels, centres and offsets."""
        return self.queries is None

    @property
    def is_thing(self) -> npt.NDArray[np.bool_]:
        """Whether the objects of each label of pixels are told apart, bool (C,)."""
        return np.array([label in self.apart for label in self.pixel_labels])

    # --- targets and training ---

    def open_targets(self, texts: Sequence[str], contract: ImageContract) -> Targets | None:
        """Return object maps, int32 (N, 2, H, W), which are drawn when they are read."""
        return ObjectMaps(texts, self.pixel_labels, self.apart, contract)

    def move_targets(
        self, targets: Tensor, placement: Placement, window: tuple[int, int, int, int]
    ) -> Tensor:
        """Move the object map of one image (2, H, W); other pixels are ignored."""
        return move_object_map(targets, placement, window)

    def join_targets(self, targets: Sequence[Tensor]) -> Tensor:
        """Join object maps (2, H, W), each of which is ignored outside of its window."""
        return join_object_maps(targets)

    def image_losses(self, options: LossOptions, texts: Sequence[str]) -> ImageLosses:
        """Return the losses of labels, centres and offsets; that of labels has the given name."""
        from eagleray.tasks.segmentation.center_loss import center_losses
        from eagleray.tasks.segmentation.loss import (
            cross_entropy_dice_losses,
            pixel_cross_entropies,
        )

        is_alone = options.name == "cross_entropy"
        of_labels = pixel_cross_entropies if is_alone else cross_entropy_dice_losses
        return lambda outputs, targets: center_losses(outputs, targets, of_labels)

    def uninformed_outputs(self, num_images: int) -> Tensor | None:
        """Return nothing: the loss needs object maps, which encoded targets are not."""
        return None

    # --- prediction ---

    def activate(self, outputs: NetworkOutput) -> Tensor:
        """Return probabilities of labels, centres and offsets as one tensor (N, C + 3, H, W).

        Queries become one tensor, too.
        """
        return self.finish_exported(self.exported_outputs(outputs))

    def exported_outputs(self, outputs: NetworkOutput) -> NetworkOutput:
        """Return the probabilities of labels, and the maps of centres and offsets as they are.

        Queries become one tensor.
        """
        assert isinstance(outputs, Mapping)
        if self.queries is not None:
            return self.queries.activate(outputs)
        maps = outputs["labels"].softmax(dim=1), outputs["centers"], outputs["offsets"]
        return dict(zip(_EXPORTED, maps, strict=True))

    def finish_exported(self, outputs: NetworkOutput) -> Tensor:
        """Return all maps as one tensor (N, C + 3, H, W)."""
        import torch

        if self.queries is not None:
            return only_tensor(outputs)
        assert isinstance(outputs, Mapping)
        return torch.cat([outputs[name] for name in _EXPORTED], dim=1)

    def describe_exported(self, contract: ImageContract) -> tuple[ExportedOutput, ...]:
        """Return probabilities, centres and offsets of pixels."""
        names = ", ".join(self.pixel_labels)
        meanings = (
            f"Probability of each label for each pixel of the input: {names}.",
            "How near each pixel is to the centre of an object, about 0 to 1.",
            "Pixels down and to the right from each pixel to the centre of its object.",
        )
        shapes = (self.num_outputs, 1, 2)
        return tuple(
            ExportedOutput(name, (count, *contract.size), meaning)
            for name, count, meaning in zip(_EXPORTED, shapes, meanings, strict=True)
        )

    def num_activated(self, contract: ImageContract) -> int:
        """Return the number of pixels of all maps."""
        return (self.num_outputs + NUM_PLACES) * contract.size[0] * contract.size[1]

    def _group(self, outputs: Outputs) -> FoundObjects:
        return group_pixels(outputs, self.is_thing, max_objects=self.max_objects)

    def _find(self, outputs: Outputs, frame: Frame) -> tuple[FoundObjects, OriginalObjects]:
        """Return the objects of one image, and the pixels of each in the original."""
        found = self._group(np.ascontiguousarray(within_image(outputs, frame)))
        probabilities = outputs[: self.num_outputs]
        return found, objects_in_original(probabilities, found, self.is_thing, frame)

    def summarize(self, outputs: Tensor) -> Tensor:
        """Return the means of the maps in the cells of a grid (N, num_values)."""
        from torch.nn import functional

        if self.queries is not None:
            return self.queries.summarize(outputs, _GRID)
        scales = outputs.new_ones(outputs.shape[1])
        scales[-2:] = _OFFSET_SCALE
        means = functional.adaptive_avg_pool2d(outputs, _GRID)
        return (means * scales[:, None, None]).flatten(1)

    @property
    def num_values(self) -> int:
        """A value for each map and cell of the grid."""
        if self.queries is not None:
            return len(self.query_labels) * _GRID**2
        return (self.num_outputs + NUM_PLACES) * _GRID**2
