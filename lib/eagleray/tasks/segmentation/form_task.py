"""What tasks share whose network tells objects apart, in one of the forms of `object_form`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Placement
from eagleray.tasks.base import ImageLosses, LossOptions, NetworkOutput, Targets, Task
from eagleray.tasks.exported import ExportedOutput
from eagleray.tasks.segmentation.center_form import CENTER_OUTPUTS, CenterForm
from eagleray.tasks.segmentation.class_maps import resize_map
from eagleray.tasks.segmentation.mask_queries import MaskQueries
from eagleray.tasks.segmentation.object_form import ObjectForm
from eagleray.tasks.segmentation.object_maps import ObjectMaps, join_object_maps, move_object_map
from eagleray.tasks.segmentation.query_form import QueryForm

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FormTask"]


class FormTask(Task):
    """A task that tells objects apart, beside what another task predicts.

    Attributes:
        max_objects: Largest number of objects of an image that are told apart.
        queries: Number and size of the masks of a network of mask queries; None for other networks.
    """

    losses: ClassVar[tuple[str, ...]] = ("cross_entropy_dice", "cross_entropy")
    loss_outputs: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"cross_entropy_dice": "labels", "cross_entropy": "labels"}
    )
    output_names: ClassVar[tuple[str, ...] | None] = CENTER_OUTPUTS
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
        """Labels of pixels in object maps, the background first."""

    @property
    @abstractmethod
    def apart(self) -> tuple[str, ...]:
        """Those of the labels whose objects are told apart."""

    @property
    def query_labels(self) -> tuple[str, ...]:
        """Labels that a query may have."""
        return self.apart

    @property
    @abstractmethod
    def form(self) -> ObjectForm:
        """The form of the network's outputs."""

    @property
    def _pixel_form(self) -> CenterForm | QueryForm:
        """The form of a network that says what every pixel is."""
        if self.queries is not None:
            return QueryForm(self.queries, len(self.query_labels), self.is_thing)
        return CenterForm(self.pixel_labels, self.is_thing, self.max_objects)

    @property
    def num_outputs(self) -> int:
        """That of the form."""
        return self.form.num_outputs

    @property
    def network_outputs(self) -> dict[str, tuple[int | None, ...]]:
        """Those of the form."""
        return self.form.shapes

    @property
    def has_exports(self) -> bool:
        """Whether the form has exports."""
        return self.form.has_exports

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

    def resize_targets(
        self, targets: Tensor, before: tuple[int, int], after: tuple[int, int]
    ) -> Tensor:
        """Resize the object map of one image (2, H, W)."""
        return resize_map(targets, after)

    def join_targets(self, targets: Sequence[Tensor]) -> Tensor:
        """Join object maps (2, H, W), each of which is ignored outside of its window."""
        return join_object_maps(targets)

    def image_losses(self, options: LossOptions, texts: Sequence[str]) -> ImageLosses:
        """Return the losses of the form."""
        return self.form.losses(options)

    def uninformed_outputs(self, num_images: int) -> Tensor | None:
        """Return nothing: the loss needs object maps, which encoded targets are not."""
        return None

    # --- prediction ---

    def activate(self, outputs: NetworkOutput) -> Tensor:
        """Return what the form makes of the outputs: one tensor (N, …)."""
        assert isinstance(outputs, Mapping)
        return self.form.activate(outputs)

    def exported_outputs(self, outputs: NetworkOutput) -> NetworkOutput:
        """Return what the form has exported."""
        assert isinstance(outputs, Mapping)
        return self.form.exported_outputs(outputs)

    def finish_exported(self, outputs: NetworkOutput) -> Tensor:
        """Return the activated outputs of what the form has exported."""
        return self.form.finish_exported(outputs)

    def describe_exported(self, contract: ImageContract) -> tuple[ExportedOutput, ...]:
        """Return what the form has exported."""
        return self.form.describe_exported(contract)

    def num_activated(self, contract: ImageContract) -> int:
        """Return the number of activated outputs of the form."""
        return self.form.num_activated(contract)

    def summarize(self, outputs: Tensor) -> Tensor:
        """Return the summary of the form (N, num_values)."""
        return self.form.summarize(outputs)

    @property
    def num_values(self) -> int:
        """That of the form."""
        return self.form.num_values
