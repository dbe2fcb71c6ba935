"""The interface of forms: how the outputs of a network say which objects an image has.

| form | a network returns |
|---|---|
| `center_form` | maps of labels, of centres and of offsets to them |
| `query_form` | scores and a mask for each of some queries; networks of other programs only |
| `region_form` | boxes with labels and scores, and a small mask in each |

A task has the form that its network has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame
from eagleray.tasks.annotation import Mask
from eagleray.tasks.base import ImageLosses, LossOptions, NetworkOutput, Outputs, only_tensor
from eagleray.tasks.detection.objects import ROW
from eagleray.tasks.exported import ExportedOutput
from eagleray.tasks.segmentation.object_masks import encode_masks, numbers_of
from eagleray.tasks.segmentation.segments import SegmentMap

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GRID", "MaskDetections", "ObjectForm", "ObjectLimits", "ScoredSegments"]

GRID = 8
"""Cells of each side of a summary."""


@dataclass(frozen=True, slots=True)
class ObjectLimits:
    """Which objects of an image are kept.

    Attributes:
        max_objects: Largest number of objects.
        min_score: Lowest score of an object.
    """

    max_objects: int
    min_score: float


@dataclass(frozen=True, slots=True)
class MaskDetections:
    """The objects of one image.

    Attributes:
        rows: Detections, float32 (max_objects, 6), see `tasks.detection.objects`; the rows without
            an object come last.
        masks: Masks of the detections that are no empty rows.
    """

    rows: npt.NDArray[np.float32]
    masks: list[Mask]

    @classmethod
    def empty(cls, limits: ObjectLimits) -> MaskDetections:
        """Return a value without objects, which `add` fills."""
        return cls(np.zeros((limits.max_objects, ROW), np.float32), [])

    def add(self, mask: Mask, box: tuple[float, ...], score: float, label: int) -> None:
        """Add an object with a mask and a box x1, y1, x2, y2."""
        self.rows[len(self.masks)] = *box, score, label
        self.masks.append(mask)

    def without(self, ignored: npt.NDArray[np.bool_]) -> MaskDetections:
        """Return the same objects without some pixels, bool (height, width)."""
        kept = MaskDetections(np.zeros_like(self.rows), [])
        for row, mask in zip(self.rows, self.masks, strict=False):
            pixels = (numbers_of([mask.counts], *mask.size) > 0) & ~ignored
            for one in encode_masks(pixels.view(np.uint8)).values():
                left = Mask.model_construct(size=mask.size, counts=one.counts)
                kept.add(left, tuple(row[:4]), row[4], row[5])
        return kept


@dataclass(frozen=True, slots=True)
class ScoredSegments:
    """The segments of one image.

    Attributes:
        segments: The segments.
        scores: Score of each identifier, that of the background first.
    """

    segments: SegmentMap
    scores: list[float]


class ObjectForm(ABC):
    """How the outputs of a network say which objects an image has."""

    __slots__ = ()

    @property
    def has_exports(self) -> bool:
        """Whether exported models of this form can be described."""
        return False

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Number of outputs of the network's last layer."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of the network's outputs for one image by name; None stands for any length."""

    # --- training ---

    @abstractmethod
    def losses(self, options: LossOptions) -> ImageLosses:
        """Return the function from outputs and object maps (N, 2, H, W) to each image's loss.

        Raises:
            InputError: If networks of this form are not trained here.
        """

    # --- outputs ---

    @abstractmethod
    def activate(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs of a network as one tensor (N, …)."""

    def exported_outputs(self, outputs: Mapping[str, Tensor]) -> NetworkOutput:
        """Return what an exported model returns, see `Task.exported_outputs`."""
        return self.activate(outputs)

    def finish_exported(self, outputs: NetworkOutput) -> Tensor:
        """Return the activated outputs (N, …) of what an exported model returned."""
        return only_tensor(outputs)

    def describe_exported(self, contract: ImageContract) -> tuple[ExportedOutput, ...]:
        """Return what an exported model returns, if the form has exports."""
        raise NotImplementedError

    @abstractmethod
    def num_activated(self, contract: ImageContract) -> int:
        """Return the number of activated outputs of an image."""

    @abstractmethod
    def summarize(self, outputs: Tensor) -> Tensor:
        """Return activated outputs (N, …) as means in a grid (N, num_values)."""

    @property
    @abstractmethod
    def num_values(self) -> int:
        """Number of values of a summary."""

    # --- objects ---

    @abstractmethod
    def find_objects(self, outputs: Outputs, frame: Frame, limits: ObjectLimits) -> MaskDetections:
        """Return the objects of one image at the size of the original.

        Args:
            outputs: Finite activated outputs of the image.
            frame: Maps places in the input to the original.
            limits: Which objects are kept.
        """

    def find_in_input(
        self, outputs: Outputs, ignored: npt.NDArray[np.bool_], limits: ObjectLimits
    ) -> MaskDetections:
        """Return the objects of one image in the network's input.

        Args:
            outputs: Finite activated outputs of the image.
            ignored: Pixels that belong to no object, bool (H, W).
            limits: Which objects are kept.
        """
        height, width = ignored.shape
        return self.find_objects(outputs, Frame(width, height), limits).without(ignored)
