"""Instance segmentation: the objects in an image, each with a label, a score, a box and a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame
from eagleray.tasks.annotation import Annotation, Mask, parse_annotation
from eagleray.tasks.base import Outputs
from eagleray.tasks.detection.boxes import DetectionSet, detection_set
from eagleray.tasks.detection.coco_metrics import coco_metrics
from eagleray.tasks.detection.object_task import ObjectsPrediction, ObjectTask
from eagleray.tasks.detection.objects import OBJECT, ROW, encode_annotation
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.page import Drawing
from eagleray.tasks.registration import register_task
from eagleray.tasks.run_lengths import decode_runs
from eagleray.tasks.segmentation.class_maps import IGNORED, encode_mask, mask_of
from eagleray.tasks.segmentation.form_task import FormTask
from eagleray.tasks.segmentation.mask_observations import (
    OBSERVED,
    TRUE_ROW,
    mask_detection_set,
    observe_masks,
    shared_pixels,
)
from eagleray.tasks.segmentation.object_form import ObjectForm, ObjectLimits
from eagleray.tasks.segmentation.object_maps import object_drawing
from eagleray.tasks.segmentation.object_masks import encode_masks, numbers_of
from eagleray.tasks.segmentation.pixel_task import BACKGROUND, require_size
from eagleray.tasks.segmentation.region_form import RegionForm
from eagleray.tasks.segmentation.region_masks import REGION_OUTPUTS, RegionMasks
from eagleray.tasks.segmentation.similarity import ScoredRegions, similarity_of_regions
from eagleray.tasks.tensors import NamedTensor, TensorSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

__all__ = ["Instance"]

_USUAL_MASK_BYTES = 300


@register_task
class Instance(FormTask, ObjectTask):
    """Objects with labels and masks.

    Attributes:
        regions: Numbers and sizes of what a network of boxes with masks returns; None for other
            networks.
    """

    optional_columns: ClassVar[frozenset[str]] = frozenset({"masks"})
    follows_network: ClassVar[bool] = True

    name: Literal["instance"] = "instance"
    regions: RegionMasks | None = None

    @property
    def form(self) -> ObjectForm:
        """Boxes with masks, mask queries, or maps of centres."""
        if self.regions is not None:
            return RegionForm(self.regions, len(self.labels))
        return self._pixel_form

    def for_network(self, shapes: Mapping[str, tuple[int, ...]], contract: ImageContract) -> Self:
        """Return the task of boxes with masks for a network that returns these."""
        if not set(REGION_OUTPUTS) <= set(shapes):
            return self
        count, side, _ = shapes[REGION_OUTPUTS[1]]
        regions = RegionMasks(count=count, side=side, size=contract.size)
        return self.model_copy(update={"regions": regions, "max_objects": count})

    @property
    def pixel_labels(self) -> tuple[str, ...]:
        """The background, and the labels of objects."""
        return (BACKGROUND, *self.labels)

    @property
    def apart(self) -> tuple[str, ...]:
        """The labels of objects."""
        return self.labels

    # --- from annotations to targets ---

    @classmethod
    def from_labels(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> Self:
        """Take the labels of all objects, in alphabetical order.

        Raises:
            InputError: If a text says no objects, there are none, or one is the background.
        """
        task = super().from_labels(texts, uris)
        if BACKGROUND in task.labels:
            raise InputError(_background_fault(texts, uris))
        return task

    def encode(self, text: str) -> list[list[float]]:
        """Return the target rows of an image: its size, and its objects with their pixels."""
        annotation = parse_annotation(text)
        rows = encode_annotation(annotation, self.labels)
        sizes = [0, *map(_num_pixels, _true_masks(annotation))]
        return [[*row, size] for row, size in zip(rows, sizes, strict=True)]

    def shape_targets(self, targets: Tensor) -> Tensor:
        """Return targets (N, 1 + K, 7) from rows of numbers."""
        return targets.reshape(len(targets), -1, TRUE_ROW)

    # --- training ---

    def observe_batch(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return observations of masks, and the true objects, both in the network's input.

        Pixels of crowds, and those beside the image, belong to no object.
        """
        import torch

        pairs = zip(outputs.float().cpu().numpy(), targets.cpu().numpy(), strict=True)
        observed, true = zip(*(self._observe_input(*pair) for pair in pairs), strict=True)
        stacked = torch.from_numpy(np.stack(observed))
        return stacked.to(outputs.device), self.stack_targets(true).to(outputs.device)

    def _observe_input(
        self, outputs: Outputs, maps: npt.NDArray[np.int32]
    ) -> tuple[Outputs, list[list[float]]]:
        """Return the observation of one image in training, and its target rows."""
        classes, numbers = maps
        height, width = numbers.shape
        true = encode_masks(numbers)
        rows: list[list[float]] = [[width, height, 0, 0, 0, 0, 0]]
        for number, one in true.items():
            x, y, wide, high = one.box
            label = classes[numbers == number][0] - 1
            rows.append([x, y, x + wide, y + high, label, OBJECT, one.area])
        if not np.isfinite(outputs).all():
            return np.full(self.observation_shape, np.nan, np.float32), rows
        found = self.form.find_in_input(outputs, classes == IGNORED, self._limits)
        truths = [one.counts for one in true.values()]
        return _observation(found.rows, found.masks, truths, rows, height, width), rows

    # --- prediction ---

    @property
    def _limits(self) -> ObjectLimits:
        return ObjectLimits(self.max_objects, self.min_score)

    def postprocess(self, outputs: Outputs, frame: Frame) -> Prediction:
        """Find the objects, and report those that reach the threshold of their label."""
        if not np.isfinite(outputs).all():
            nothing = np.full((self.max_objects, ROW), np.nan, np.float32)
            return ObjectsPrediction(detections=nothing)
        found = self.form.find_objects(outputs, frame, self._limits)
        return self._prediction(found.rows, found.masks)

    def similarity(self, prediction: Prediction, other: Prediction) -> float:
        """Return the panoptic quality of the reported objects, see `similarity_of_regions`."""
        return similarity_of_regions(_regions(prediction), _regions(other))

    def observe(self, prediction: Prediction, text: str) -> Outputs:
        """Return what metrics need of the image's masks at the size of the original.

        Raises:
            InputError: If the annotation is of an image of another size.
        """
        assert isinstance(prediction, ObjectsPrediction)
        if np.isnan(prediction.detections).any():
            return np.full(self.observation_shape, np.nan, np.float32)
        annotation = parse_annotation(text)
        height, width = annotation.height, annotation.width
        if prediction.masks:
            require_size(prediction.masks[0].size, annotation)
        rows = self.encode(text)
        true = [one.counts for one in _true_masks(annotation)]
        return _observation(prediction.detections, prediction.masks, true, rows, height, width)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """A row for each object, see `mask_observations`."""
        return self.max_objects, OBSERVED

    # --- evaluation ---

    def _data(self, outputs: Tensor, targets: Tensor) -> DetectionSet:
        return mask_detection_set(outputs.cpu().numpy(), targets.cpu().numpy(), len(self.labels))

    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Return the names of metrics of masks, and of those of boxes."""
        names = super().measured_names(targets)
        return (*names, *_BOX_METRICS) if "map" in names else names

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute the metrics of a detection model over masks, and `box_map` and `box_map_50`."""
        found = super().measure(outputs, targets)
        if "map" not in found:
            return found
        boxes = detection_set(
            outputs[:, :, :ROW].cpu().numpy(),
            targets[:, :, :ROW].cpu().numpy(),
            len(self.labels),
        )
        of_boxes = coco_metrics(boxes, self.labels)
        return {**found, **{name: of_boxes[own] for name, own in _BOX_METRICS.items()}}

    # --- results ---

    @classmethod
    def result_types(cls) -> dict[str, pa.DataType]:
        """Return the objects, their number, and their masks."""
        import pyarrow as pa

        fields = [pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())]
        return {**super().result_types(), "masks": pa.list_(pa.struct(fields))}

    @property
    def result_bytes(self) -> int:
        """Those of objects with masks."""
        return super().result_bytes * (1 + _USUAL_MASK_BYTES // 40)

    def result_row(self, prediction: Prediction, top_k: int) -> dict[str, Any]:
        """Return the objects, their number, the number of each label, and the masks."""
        assert isinstance(prediction, ObjectsPrediction)
        masks = [_as_json(one.mask) for one in prediction.objects if one.mask]
        return {**super().result_row(prediction, top_k), "masks": masks}

    def drawing(self, prediction: Prediction, threshold: float | None) -> Drawing | None:
        """Return the masks of the objects, and their boxes with labels and scores."""
        drawing = super().drawing(prediction, threshold)
        assert isinstance(prediction, ObjectsPrediction)
        assert drawing is not None
        masks = [one.mask for one in self._reported(prediction, threshold) if one.mask]
        if not masks:
            return drawing
        numbers = numbers_of([one.counts for one in masks], *masks[0].size)
        return Drawing(drawing.boxes, mask=encode_mask(numbers))

    def true_drawing(self, text: str) -> Drawing | None:
        """Return the true objects, each in a colour."""
        return object_drawing(text)

    def response(
        self, prediction: Prediction, *, top_k: int, threshold: float | None
    ) -> dict[str, Any]:
        """Return what a detection model does, with the mask of each object."""
        assert isinstance(prediction, ObjectsPrediction)
        members = super().response(prediction, top_k=top_k, threshold=threshold)
        objects = self._reported(prediction, threshold)
        members["objects"] = [
            {**shown, "mask": _as_json(one.mask)}
            for shown, one in zip(members["objects"], objects, strict=True)
            if one.mask
        ]
        return members

    def tensor_specs(self) -> tuple[TensorSpec, ...]:
        """Return the outputs of a detection model, and the run lengths of masks."""
        return (*super().tensor_specs(), TensorSpec("masks", "BYTES", (-1, self.max_objects)))

    def tensors(self, predictions: Sequence[Prediction | None]) -> list[NamedTensor]:
        """Return the objects of each image, filled up with zeros and empty texts."""
        masks = [b""] * (len(predictions) * self.max_objects)
        for place, prediction in enumerate(predictions):
            objects = prediction.objects if isinstance(prediction, ObjectsPrediction) else ()
            for index, one in enumerate(objects):
                if one.mask:
                    masks[place * self.max_objects + index] = one.mask.counts.encode()
        shape = (len(predictions), self.max_objects)
        return [*super().tensors(predictions), NamedTensor("masks", "BYTES", shape, masks)]


_BOX_METRICS: Mapping[str, str] = {"box_map": "map", "box_map_50": "map_50"}


def _observation(
    detections: npt.NDArray[np.float32],
    masks: Sequence[Mask],
    truths: Sequence[str],
    rows: Sequence[Sequence[float]],
    height: int,
    width: int,
) -> Outputs:
    """Return the observation of an image, given its detections and its target rows."""
    counts = [one.counts for one in masks]
    areas = np.array([_num_pixels(one) for one in masks], np.int64)
    shared = shared_pixels(counts, truths, height, width)
    return observe_masks(detections, areas, shared, np.array(rows[1:]).reshape(-1, TRUE_ROW))


def _background_fault(texts: Sequence[str], uris: Sequence[str]) -> str:
    """Return a sentence on the images with objects that have the label of the background."""
    rows = [row for row, text in enumerate(texts) if BACKGROUND in parse_annotation(text).labels]
    first = f", first {uris[rows[0]]}," if uris else ""
    images = f"1 image{first} has" if len(rows) == 1 else f"{len(rows):,} images{first} have"
    return (
        f"{images} objects with the label {BACKGROUND!r}, which an instance model has for pixels "
        "without an object; remove these objects or their category from the labels, or rename it."
    )


def _regions(prediction: Prediction) -> ScoredRegions:
    """Return the reported objects."""
    assert isinstance(prediction, ObjectsPrediction)
    masks = [one.mask for one in prediction.objects if one.mask]
    size = masks[0].size if masks else (0, 0)
    return ScoredRegions(
        numbers_of([one.counts for one in masks], *size),
        tuple(one.label for one in prediction.objects),
        tuple(one.score for one in prediction.objects),
    )


def _true_masks(annotation: Annotation) -> list[Mask]:
    """Return the masks of an image's objects and crowds.

    Raises:
        InputError: If one has none.
    """
    size = annotation.height, annotation.width
    return [mask_of(one, *size) for one in annotation.objects]


def _num_pixels(mask: Mask) -> int:
    return int(decode_runs(mask.counts, *mask.size)[1::2].sum())


def _as_json(mask: Mask) -> dict[str, Any]:
    return {"size": list(mask.size), "counts": mask.counts}
