"""Detection: the objects in an image, each with a label, a score and a box."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame, Placement
from eagleray.imaging.tiles import Window
from eagleray.tasks.base import Floats, ImageLosses, LossOptions, NetworkOutput, Outputs
from eagleray.tasks.detection.object_task import ObjectTask, Probability
from eagleray.tasks.detection.objects import (
    ROW,
    detections_in_original,
    join_targets,
    move_targets,
    object_difference,
    resize_targets,
    select_objects,
    stack_targets,
    targets_in_input,
)
from eagleray.tasks.detection.tiles import TileDetections
from eagleray.tasks.exported import ExportedOutput
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.registration import register_task
from eagleray.tasks.tiles import TileJoiner

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Detection"]

_SCORE = 4  # column of the score in a detection


@register_task
class Detection(ObjectTask):
    """Objects with labels and boxes.

    Attributes:
        max_overlap: Largest intersection over union of two objects of one label.
    """

    losses: ClassVar[tuple[str, ...]] = ("dense", "quality_focal")
    loss_outputs: ClassVar[Mapping[str, str]] = MappingProxyType({"quality_focal": "points"})
    output_names: ClassVar[tuple[str, ...] | None] = ("boxes", "logits")
    export_example: ClassVar[tuple[str, ...]] = ("objects",)
    export_note: ClassVar[str] = (
        "Non-maximum suppression is not part of the model: of candidates of one label that "
        "overlap, only the one with the highest score is an object. `choose_objects` in "
        "`predict.py` does it with the settings below, and `to_original` maps a box to the "
        "image file. The candidates of an image are as many as the input has points, "
        "A; their order has no meaning."
    )
    default_architecture: ClassVar[str] = "detector/resnet18"
    observes_rows: ClassVar[bool] = True
    joins_tiles: ClassVar[bool] = True

    name: Literal["detection"] = "detection"
    max_overlap: Probability = 0.6

    # --- from annotations to targets ---

    @property
    def num_outputs(self) -> int:
        """One logit for each label."""
        return len(self.labels)

    @property
    def network_outputs(self) -> dict[str, tuple[int | None, ...]]:
        """Candidate boxes, and a logit of each label for each of them."""
        return {"boxes": (None, 4), "logits": (None, self.num_outputs)}

    def targets_in_input(self, targets: Tensor, contract: ImageContract) -> Tensor:
        """Return targets in pixels of the input instead of the original."""
        return targets_in_input(targets, contract)

    def move_targets(
        self, targets: Tensor, placement: Placement, window: tuple[int, int, int, int]
    ) -> Tensor:
        """Move the boxes of one image, and cut them off at the edges of the window."""
        return move_targets(targets, placement, window)

    def resize_targets(
        self, targets: Tensor, before: tuple[int, int], after: tuple[int, int]
    ) -> Tensor:
        """Scale the boxes of one image."""
        return resize_targets(targets, before, after)

    def join_targets(self, targets: Sequence[Tensor]) -> Tensor:
        """Return the objects of all images."""
        return join_targets(targets)

    def batch_targets(self, targets: Sequence[Tensor]) -> Tensor:
        """Fill the rows of images up to one length: float32 (N, 1 + K, 6)."""
        return stack_targets(targets)

    # --- training ---

    def image_losses(self, options: LossOptions, texts: Sequence[str]) -> ImageLosses:
        """Return the loss of what the network returns, or the quality focal loss if named."""
        from eagleray.tasks.detection.loss import detection_losses
        from eagleray.tasks.detection.quality_loss import quality_focal_losses

        return quality_focal_losses if options.name == "quality_focal" else detection_losses

    def uninformed_outputs(self, num_images: int) -> Tensor | None:
        """Return nothing: where a detector finds nothing depends on its points."""
        return None

    # --- prediction ---

    def activate(self, outputs: NetworkOutput) -> Tensor:
        """Return detections (N, max_objects, 6) in pixels of the input, best first."""
        return self.finish_exported(self.exported_outputs(outputs))

    def exported_outputs(self, outputs: NetworkOutput) -> NetworkOutput:
        """Return the candidate boxes, and the score of each label for each of them."""
        assert isinstance(outputs, Mapping)
        return {"boxes": outputs["boxes"], "scores": outputs["logits"].sigmoid()}

    def describe_exported(self, contract: ImageContract) -> tuple[ExportedOutput, ...]:
        """Return candidate boxes and their scores."""
        boxes = "A candidate box in each row: x1, y1, x2, y2 in pixels of the input."
        scores = "Probability of each label for each candidate, in the order of the labels."
        return (
            ExportedOutput("boxes", ("A", 4), boxes),
            ExportedOutput("scores", ("A", len(self.labels)), scores),
        )

    def finish_exported(self, outputs: NetworkOutput) -> Tensor:
        """Choose the objects among the candidates (N, max_objects, 6)."""
        assert isinstance(outputs, Mapping)
        return select_objects(
            outputs["boxes"],
            outputs["scores"],
            max_objects=self.max_objects,
            min_score=self.min_score,
            max_overlap=self.max_overlap,
        )

    def postprocess(self, outputs: Outputs, frame: Frame) -> Prediction:
        """Map the detections to the original image, and report those that reach a threshold."""
        return self._prediction(detections_in_original(outputs, frame))

    def join_tiles(self, width: int, height: int) -> TileJoiner:
        """Return what joins the detections of tiles; an image may have more objects than a tile."""
        return _ObjectJoiner(self._prediction, TileDetections(width, height), self.max_overlap)

    @property
    def num_values(self) -> int:
        """Six numbers for each object."""
        return self.max_objects * ROW

    @property
    def unit(self) -> float:
        """Four times that of a probability: rounding may choose the other of two boxes."""
        return 4.0

    def max_difference(self, outputs: Floats, expected: Floats) -> float:
        """Return the largest difference between the objects of two images of a pair."""
        return float(np.max(self._differences(outputs, expected)))

    def mean_difference(self, outputs: Floats, expected: Floats) -> float:
        """Return the mean difference between the objects of two images of a pair."""
        return float(np.mean(self._differences(outputs, expected)))

    def variation(self, outputs: Floats) -> float | None:
        """Return None: no object of one image is that of another."""
        return None

    def is_empty(self, prediction: Prediction) -> bool:
        """Return whether there are no detections, not even below the thresholds."""
        return not self.outputs_of(prediction)[:, _SCORE].any()

    def _differences(self, outputs: Floats, expected: Floats) -> list[float]:
        pairs = zip(
            outputs.reshape(-1, *self.observation_shape),
            expected.reshape(-1, *self.observation_shape),
            strict=True,
        )
        return [object_difference(rows, wanted) for rows, wanted in pairs]

    # --- evaluation ---

    def settings(self) -> dict[str, str]:
        """Return thresholds, and how overlapping boxes are treated."""
        limit = f"IoU above {self.max_overlap:g}"
        return {**super().settings(), "non-maximum suppression": limit}


@dataclass(frozen=True, slots=True)
class _ObjectJoiner:
    """Maps the detections of tiles to their image, and joins them."""

    predict: Callable[[npt.NDArray[np.float32]], Prediction]
    found: TileDetections
    max_overlap: float

    def add(self, window: Window, outputs: Outputs, frame: Frame) -> None:
        self.found.add(window, detections_in_original(outputs, frame))

    def prediction(self) -> Prediction:
        return self.predict(self.found.joined(self.max_overlap))
