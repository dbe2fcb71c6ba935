"""What tasks share that find objects: their labels, thresholds, metrics, results and drawings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from eagleray.core.errors import InputError
from eagleray.core.limits import MAX_LABELS
from eagleray.tasks.annotation import Mask, labels_of_objects, parse_annotation
from eagleray.tasks.base import Outputs, Task, WeightedMetrics
from eagleray.tasks.detection.boxes import DetectionSet, detection_set
from eagleray.tasks.detection.curves import best_f1, count_error
from eagleray.tasks.detection.errors import detection_errors
from eagleray.tasks.detection.metrics import detection_metric_names, measure_detections
from eagleray.tasks.detection.objects import (
    OBJECT,
    ROW,
    DetectedObject,
    box_iou,
    encode_annotation,
    stack_targets,
)
from eagleray.tasks.detection.resampling import average_precision_of_resamples
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.page import Box, ConfusionMatrix, Drawing, Plot, Section, Table
from eagleray.tasks.review import Mistake
from eagleray.tasks.tensors import NamedTensor, TensorSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

__all__ = ["COUNT_PREFIX", "ObjectTask", "ObjectsPrediction", "Probability"]

Probability = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1 as a field of a task."""

_HEADLINES = ("map", "map_50", "map_75")
_MAX_LABELS_SHOWN = 50
_USUAL_OBJECTS = 25  # of an image, to estimate the size of a table

COUNT_PREFIX = "count_"
"""Prefix of the columns of a result table with the number of objects of one label each."""


@dataclass(frozen=True, slots=True)
class ObjectsPrediction(Prediction):
    """The objects of one image.

    `label` and `score` are those of the best object, `labels` are the labels that there are.

    Attributes:
        objects: The objects whose score reaches the threshold of their label, best first.
        detections: All detections (max_objects, 6) in pixels of the original image, also those
            below the thresholds; see `tasks.objects`.
        masks: Masks of the detections that are no empty rows; none for a task without masks.
    """

    objects: tuple[DetectedObject, ...] = ()
    detections: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, ROW), "f4"))
    masks: tuple[Mask, ...] = ()


class ObjectTask(Task):
    """Objects with labels, scores and places.

    Attributes:
        labels: Labels of objects, in the order of the outputs.
        thresholds: Lowest score of a reported object, for each label.
        max_objects: Largest number of objects of an image.
        min_score: Lowest score of a detection, for the metrics; reported objects reach the
            thresholds.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("map", "map_50")
    fitted: ClassVar[frozenset[str]] = frozenset({"thresholds"})
    has_many_labels: ClassVar[bool] = True
    label_kind: ClassVar[Literal["text", "objects"]] = "objects"
    counts_objects: ClassVar[bool] = True
    main_member: ClassVar[str] = "objects"
    instead: ClassVar[str] = (
        "its objects say where it sees what: the pages of `eagleray predict` and `eagleray "
        "evaluate` draw them, and so does the service with the header Accept: image/png"
    )
    measures_training: ClassVar[bool] = False

    labels: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LABELS)]
    thresholds: tuple[Probability, ...] = ()
    max_objects: Annotated[int, Field(ge=1, le=1000)] = 100
    min_score: Probability = 0.05

    @model_validator(mode="before")
    @classmethod
    def _default_thresholds(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("thresholds"):
            return {**values, "thresholds": (0.5,) * len(values.get("labels", ()))}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be unique")
        if len(self.thresholds) != len(self.labels):
            raise ValueError("thresholds must be as many as labels")
        return self

    # --- from annotations to targets ---

    @classmethod
    def from_labels(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> Self:
        """Take the labels of all objects, in alphabetical order.

        Raises:
            InputError: If a text says no objects, or there are none at all.
        """
        return cls.model_validate({"labels": tuple(sorted(labels_of_objects(texts, uris)))})

    @classmethod
    def labels_in(cls, text: str) -> tuple[str, ...]:
        """Return the labels of an image's objects, each once."""
        return parse_annotation(text).labels

    def encode(self, text: str) -> list[list[float]]:
        """Return the target rows of an image: its size, and its objects."""
        return encode_annotation(parse_annotation(text), self.labels)

    def stack_targets(self, encoded: Sequence[Any]) -> Tensor:
        """Fill the rows of images up to one length: float32 (N, 1 + K, 6)."""
        return stack_targets(encoded)

    def shape_targets(self, targets: Tensor) -> Tensor:
        """Return targets (N, 1 + K, 6) from rows of numbers."""
        return targets.reshape(len(targets), -1, ROW)

    # --- training ---

    def decide(self, outputs: Tensor) -> Tensor:
        """Return the detections as they are (N, max_objects, 6)."""
        return outputs

    def training_metrics(self, decisions: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the average precision over labels, and that at an IoU of 0.5; 0 for no objects."""
        found = self.weighted_metrics(decisions, targets)(np.ones((1, len(targets))))
        return {name: float(np.nan_to_num(found[name][0])) for name in self.metric_names}

    # --- prediction ---

    def _objects(
        self,
        detections: npt.NDArray[np.float32],
        threshold: float | None,
        masks: Sequence[Mask] = (),
    ) -> tuple[DetectedObject, ...]:
        """Return the objects from a score on.

        Args:
            detections: Detections (M, 6).
            threshold: Lowest score; None for that of the task for each label.
            masks: Masks of the detections that are no empty rows; none without masks.
        """
        found = []
        for place, (x1, y1, x2, y2, score, index) in enumerate(detections[:, :ROW].tolist()):
            limit = self.thresholds[int(index)] if threshold is None else threshold
            if score > 0 and score >= limit:
                label, mask = self.labels[int(index)], masks[place] if masks else None
                found.append(DetectedObject(label, score, x1, y1, x2 - x1, y2 - y1, mask))
        return tuple(found)

    def _reported(
        self, prediction: ObjectsPrediction, threshold: float | None
    ) -> tuple[DetectedObject, ...]:
        """Return the objects of a prediction; a threshold replaces those of the task."""
        if threshold is None:
            return prediction.objects
        return self._objects(prediction.detections, threshold, prediction.masks)

    def _prediction(
        self, detections: npt.NDArray[np.float32], masks: Sequence[Mask] = ()
    ) -> ObjectsPrediction:
        """Return the prediction with detections (M, 6) in pixels of the original."""
        objects = self._objects(detections, None, masks)
        return ObjectsPrediction(
            label=objects[0].label if objects else None,
            score=objects[0].score if objects else None,
            labels=tuple(dict.fromkeys(one.label for one in objects)),
            objects=objects,
            detections=detections,
            masks=tuple(masks),
        )

    def outputs_of(self, prediction: Prediction) -> Outputs:
        """Return all detections, in pixels of the original image."""
        assert isinstance(prediction, ObjectsPrediction)
        return prediction.detections

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """A row of six numbers for each object."""
        return self.max_objects, ROW

    def same_answer(self, prediction: Prediction, other: Prediction) -> bool:
        """Return whether both report as many objects of each label."""
        return _counts(prediction) == _counts(other)

    def is_empty(self, prediction: Prediction) -> bool:
        """Return whether no object is reported."""
        assert isinstance(prediction, ObjectsPrediction)
        return not prediction.objects

    def describe(self, prediction: Prediction) -> str | None:
        """Return how many objects of each label there are, such as `3 cells`."""
        return _describe(_counts(prediction))

    # --- evaluation ---

    @property
    def headline_names(self) -> tuple[str, ...]:
        """COCO's average precision, and that at an IoU of 0.5 and of 0.75."""
        return _HEADLINES

    def _data(self, outputs: Tensor, targets: Tensor) -> DetectionSet:
        return detection_set(outputs.cpu().numpy(), targets.cpu().numpy(), len(self.labels))

    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Return the names of all metrics that are defined for the true objects."""
        if targets is None:
            return detection_metric_names(self.labels)
        nothing = targets.new_zeros(len(targets), *self.observation_shape)
        return detection_metric_names(self.labels, self._data(nothing, targets))

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute COCO's twelve metrics, VOC's, the best F1, the count error, and those of labels.

        `f1[LABEL]` is the best over the thresholds of the score; `count_error` is the mean
        difference between predicted and true numbers of objects, over images and labels, at the
        model's thresholds.
        """
        data = self._data(outputs, targets)
        metrics = measure_detections(data, self.labels)
        error = count_error(data, self.thresholds)
        return metrics if error is None else {**metrics, "count_error": error}

    def weighted_metrics(self, outputs: Tensor, targets: Tensor) -> WeightedMetrics:
        """Resample images: average precision from detections that are matched once."""
        return average_precision_of_resamples(self._data(outputs, targets))

    def fit(self, outputs: Tensor, targets: Tensor, wanted: Collection[str]) -> Task:
        """Return the task with the thresholds of the best F1, if they are wanted."""
        return self.choose_thresholds(outputs, targets) if "thresholds" in wanted else self

    def choose_thresholds(self, outputs: Tensor, targets: Tensor, *, goal: str = "f1") -> Self:
        """Return the task with the threshold of each label that gives the best F1.

        A label without true objects keeps its own.

        Raises:
            InputError: If the goal is not `f1`.
        """
        if goal.strip() != "f1":
            raise InputError(f"{goal!r} is not a goal of {self.as_model}; write f1.")
        best = best_f1(self._data(outputs, targets), self.labels)
        chosen = {label: one.threshold for label, one in best.items()}
        thresholds = [
            known if chosen.get(label) is None else chosen[label]
            for label, known in zip(self.labels, self.thresholds, strict=True)
        ]
        return self.model_copy(update={"thresholds": tuple(thresholds)})

    def settings(self) -> dict[str, str]:
        """Return the thresholds, and how many objects an image may have."""
        shown = [
            f"{label} {threshold:.2f}"
            for label, threshold in zip(self.labels, self.thresholds, strict=True)
        ]
        return {
            "thresholds": ", ".join(shown[:_MAX_LABELS_SHOWN]),
            "objects of an image": f"at most {self.max_objects:,}",
        }

    def section(self, outputs: Tensor, targets: Tensor, metrics: Mapping[str, float]) -> Section:
        """Return tables of the metrics of each label, and of the kinds of error."""
        data = self._data(outputs, targets)
        best = best_f1(data, self.labels)
        counts = data.num_true.tolist()
        rows = [
            (
                label,
                counts[index],
                metrics.get(f"ap[{label}]"),
                metrics.get(f"ap_50[{label}]"),
                None if label not in best else best[label].f1,
                None if label not in best else best[label].threshold,
            )
            for index, label in enumerate(self.labels[:_MAX_LABELS_SHOWN])
        ]
        headings = ("Label", "Objects", "AP", "AP at IoU 0.5", "Best F1", "at threshold")
        errors = detection_errors(data, np.asarray(self.thresholds))
        plots: list[Plot] = []
        if 1 < len(self.labels) <= _MAX_LABELS_SHOWN:
            counts_by_label = errors.confusion(data)
            plots.append(ConfusionMatrix(self.labels, counts_by_label, "Confusion matrix"))
        return Section(
            plots=plots,
            tables=[
                Table("Per-class metrics", headings, rows),
                Table("Kinds of error", ("Kind", "Objects"), list(errors.counts.items())),
            ],
        )

    def worst_mistakes(self, outputs: Tensor, targets: Tensor, count: int) -> list[Mistake]:
        """Return the images with the most objects that are missed, or reported and not there."""
        found = []
        for position, (rows, truth) in enumerate(zip(outputs, targets, strict=True)):
            objects = self._objects(rows.cpu().numpy(), None)
            boxes = _boxes(objects)
            true = self._true_boxes(truth)
            errors = _num_unmatched(true, boxes)
            if errors:
                given = _describe(Counter(box.label for box in true)) or "no objects"
                predicted = _describe(Counter(one.label for one in objects)) or "no objects"
                mistake = Mistake(position, given, predicted, boxes=(*true, *boxes))
                found.append((errors, mistake))
        return [one for _, one in sorted(found, key=lambda pair: -pair[0])[:count]]

    def _true_boxes(self, truth: Tensor) -> tuple[Box, ...]:
        return tuple(
            Box(x1, y1, x2 - x1, y2 - y1, self.labels[int(index)])
            for x1, y1, x2, y2, index, kind in truth[1:, :ROW].tolist()
            if kind == OBJECT
        )

    # --- results ---

    @classmethod
    def result_types(cls) -> dict[str, pa.DataType]:
        """Return the objects, and their number."""
        import pyarrow as pa

        names = ("score", "x", "y", "width", "height")
        numbers = [pa.field(name, pa.float32()) for name in names]
        return {
            "objects": pa.list_(pa.struct([pa.field("label", pa.string()), *numbers])),
            "count": pa.int32(),
        }

    @classmethod
    def label_types(cls) -> dict[str, pa.DataType]:
        """Return the type of the number of objects of a label."""
        import pyarrow as pa

        return {COUNT_PREFIX: pa.int32()}

    @property
    def result_bytes(self) -> int:
        """The counts, and as many objects as an image often has."""
        return 4 * len(self.labels) + 40 * min(self.max_objects, _USUAL_OBJECTS)

    def result_fields(self) -> list[pa.Field]:
        """Return the columns, with the number of objects of each label as `count_LABEL`."""
        import pyarrow as pa

        counts = [pa.field(COUNT_PREFIX + label, pa.int32()) for label in self.labels]
        return [*super().result_fields(), *counts]

    def result_row(self, prediction: Prediction, top_k: int) -> dict[str, Any]:
        """Return the objects, their number, and the number of each label."""
        counts = _counts(prediction)
        assert isinstance(prediction, ObjectsPrediction)
        return {
            "objects": [_as_json(one) for one in prediction.objects],
            "count": counts.total(),
            **{COUNT_PREFIX + label: counts[label] for label in self.labels},
        }

    def counts(self, prediction: Prediction, threshold: float | None = None) -> Mapping[str, int]:
        """Return the number of objects of each label; labels without objects are left out."""
        assert isinstance(prediction, ObjectsPrediction)
        return Counter(one.label for one in self._reported(prediction, threshold))

    def drawing(self, prediction: Prediction, threshold: float | None) -> Drawing | None:
        """Return the boxes of the objects with labels and scores."""
        assert isinstance(prediction, ObjectsPrediction)
        return Drawing(_boxes(self._reported(prediction, threshold)))

    def response(
        self, prediction: Prediction, *, top_k: int, threshold: float | None
    ) -> dict[str, Any]:
        """Return the objects, their number, and the number of each label that there is."""
        assert isinstance(prediction, ObjectsPrediction)
        objects = self._reported(prediction, threshold)
        counts = Counter(one.label for one in objects)
        return {
            "objects": [_as_json(one) for one in objects],
            "count": counts.total(),
            "counts": dict(counts.most_common()),
        }

    def tensor_specs(self) -> tuple[TensorSpec, ...]:
        """Return boxes as x, y, width and height, scores, labels, and the number of objects."""
        most = self.max_objects
        return (
            TensorSpec("boxes", "FP32", (-1, most, 4)),
            TensorSpec("scores", "FP32", (-1, most)),
            TensorSpec("labels", "BYTES", (-1, most)),
            TensorSpec("count", "INT32", (-1,)),
        )

    def tensors(self, predictions: Sequence[Prediction | None]) -> list[NamedTensor]:
        """Return the objects of each image, filled up with zeros and empty labels."""
        num_images, most = len(predictions), self.max_objects
        boxes = np.zeros((num_images, most, 4), np.float32)
        scores = np.zeros((num_images, most), np.float32)
        labels = [b""] * (num_images * most)
        counts = np.zeros(num_images, np.int32)
        for place, prediction in enumerate(predictions):
            objects = prediction.objects if isinstance(prediction, ObjectsPrediction) else ()
            counts[place] = len(objects)
            for index, one in enumerate(objects):
                boxes[place, index] = one.x, one.y, one.width, one.height
                scores[place, index] = one.score
                labels[place * most + index] = one.label.encode()
        return [
            NamedTensor("boxes", "FP32", boxes.shape, boxes),
            NamedTensor("scores", "FP32", scores.shape, scores),
            NamedTensor("labels", "BYTES", scores.shape, labels),
            NamedTensor("count", "INT32", counts.shape, counts),
        ]


def _boxes(objects: Sequence[DetectedObject]) -> tuple[Box, ...]:
    return tuple(Box(one.x, one.y, one.width, one.height, one.label, one.score) for one in objects)


def _num_unmatched(true: Sequence[Box], predicted: Sequence[Box]) -> int:
    """Return how many true and predicted boxes have no counterpart with an IoU of 0.5."""
    sides = [
        np.array([[box.x, box.y, box.x + box.width, box.y + box.height] for box in boxes])
        for boxes in (true, predicted)
    ]
    if not len(sides[0]) or not len(sides[1]):
        return len(true) + len(predicted)
    overlaps = box_iou(*sides) >= 0.5
    return int((~overlaps.any(axis=1)).sum() + (~overlaps.any(axis=0)).sum())


def _counts(prediction: Prediction) -> Counter[str]:
    objects = prediction.objects if isinstance(prediction, ObjectsPrediction) else ()
    return Counter(one.label for one in objects)


def _describe(counts: Counter[str]) -> str | None:
    return ", ".join(f"{count:,} {label}" for label, count in sorted(counts.items())) or None


def _as_json(one: DetectedObject) -> dict[str, Any]:
    return {
        "label": one.label,
        "score": one.score,
        "x": one.x,
        "y": one.y,
        "width": one.width,
        "height": one.height,
    }
