"""Panoptic segmentation: every pixel has a label, and objects of one label are told apart.

A label is a thing or stuff. Each object of a thing is a segment, and so are all pixels of a stuff
label. Pixels of the background belong to no segment.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from eagleray.core.errors import InputError
from eagleray.imaging.geometry import Frame
from eagleray.tasks.annotation import parse_annotation
from eagleray.tasks.base import Outputs, WeightedMetrics
from eagleray.tasks.detection.object_task import COUNT_PREFIX
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.page import Box, Drawing, Section, Table
from eagleray.tasks.registration import register_task
from eagleray.tasks.review import Mistake
from eagleray.tasks.segmentation.center_form import CenterForm
from eagleray.tasks.segmentation.class_maps import (
    class_map,
    decode_numbers,
    encode_mask,
)
from eagleray.tasks.segmentation.form_task import FormTask
from eagleray.tasks.segmentation.object_maps import label_indices, object_drawing, object_map
from eagleray.tasks.segmentation.object_masks import encode_masks
from eagleray.tasks.segmentation.panoptic_metrics import (
    PanopticCounts,
    count_segments,
    panoptic_metrics,
    resampled_panoptic_metrics,
)
from eagleray.tasks.segmentation.pixel_counts import confusion_of, count_labels, shares_to_counts
from eagleray.tasks.segmentation.pixel_task import PixelTask, SharesPrediction, require_size
from eagleray.tasks.segmentation.query_form import QueryForm
from eagleray.tasks.segmentation.region_metrics import region_metrics, resampled_region_metrics
from eagleray.tasks.segmentation.segments import (
    Segment,
    SegmentMap,
    describe_counts,
    segmentation_of,
)
from eagleray.tasks.segmentation.similarity import ScoredRegions, similarity_of_regions
from eagleray.tasks.segmentation.things import find_things
from eagleray.tasks.tensors import NamedTensor, TensorSpec, text_tensor

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

__all__ = ["Panoptic", "PanopticPrediction"]

_HEADLINES = ("pq", "sq", "rq", "mean_iou")
_COUNTS = 4  # rows of an observation, before its confusion matrix
_MAX_LABELS_SHOWN = 50
_USUAL_BYTES = 25_000  # of a segment map and its segments


@dataclass(frozen=True, slots=True)
class PanopticPrediction(SharesPrediction):
    """The segments of one image.

    Attributes:
        segments: The segments: things, best first, then stuff in the order of the labels.
        segment_map: PNG of the size of the upright original image, whose gray values are the
            identifiers of segments and 0 for the background; of 16 bits for more than 255.
    """

    segments: tuple[Segment, ...] = ()
    segment_map: bytes = b""


@register_task
class Panoptic(FormTask, PixelTask):
    """A label for every pixel, with the objects of things told apart.

    Attributes:
        things: Labels whose objects are told apart; the others are stuff.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("pq", "mean_iou")
    counts_objects: ClassVar[bool] = True
    main_member: ClassVar[str] = "segments"

    name: Literal["panoptic"] = "panoptic"
    things: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _things_are_labels(self) -> Self:
        if not set(self.things) <= set(self.labels[1:]):
            raise ValueError("things must be labels other than the first, the background")
        return self

    @classmethod
    def from_labels(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> Self:
        """Take the background and the labels of all objects.

        Things are the labels of which the data say so; where they say nothing, those of which some
        image has several objects, crowds apart.

        Raises:
            InputError: If a text says no objects, there are none, or none is to be told apart.
        """
        labels = cls.labels_of(texts, uris)
        found = find_things(map(parse_annotation, texts))
        things = tuple(label for label in labels[1:] if label in found)
        if not things:
            raise InputError(
                "No label is a thing, and no image has two objects of one label: there is "
                "nothing to tell apart; train a semantic model."
            )
        return cls(labels=labels, things=things)

    @property
    def pixel_labels(self) -> tuple[str, ...]:
        """All labels."""
        return self.labels

    @property
    def apart(self) -> tuple[str, ...]:
        """The labels of things."""
        return self.things

    @property
    def query_labels(self) -> tuple[str, ...]:
        """All labels but the background."""
        return self.labels[1:]

    @property
    def form(self) -> CenterForm | QueryForm:
        """Maps of centres, or mask queries."""
        return self._pixel_form

    # --- observations ---

    def observe_batch(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return matched segments with confusion matrices, and true numbers of pixels (N, C).

        They are those of the network's input.
        """
        import torch

        pairs = zip(outputs.float().cpu().numpy(), targets.cpu().numpy(), strict=True)
        observed, true = zip(*(self._observe_input(*pair) for pair in pairs), strict=True)
        device = outputs.device
        return (
            torch.from_numpy(np.stack(observed)).to(device),
            torch.from_numpy(np.stack(true)).to(device),
        )

    def _observe_input(
        self, outputs: Outputs, maps: npt.NDArray[np.int32]
    ) -> tuple[Outputs, npt.NDArray[np.int64]]:
        """Return the observation of one image in training, and its true numbers of pixels."""
        true = maps[0].astype(np.uint8), maps[1]
        num_pixels = count_labels(true[0], len(self.labels))
        if not np.isfinite(outputs).all():
            return np.full(self.observation_shape, np.nan, np.float32), num_pixels
        height, width = true[0].shape
        own = self.form.find_segments(outputs, Frame(width, height)).segments
        predicted = own.labels[own.ids].astype(np.uint8), own.numbers[own.ids]
        return self._observation(predicted, true), num_pixels

    def observe(self, prediction: Prediction, text: str) -> Outputs:
        """Return matched segments and the confusion matrix, at the size of the original.

        Raises:
            InputError: If the annotation is of an image of another size.
        """
        assert isinstance(prediction, PanopticPrediction)
        if np.isnan(prediction.shares).any():
            return np.full(self.observation_shape, np.nan, np.float32)
        ids = decode_numbers(prediction.segment_map)
        annotation = parse_annotation(text)
        height, width = ids.shape
        require_size((height, width), annotation)
        index = {label: place for place, label in enumerate(self.labels)}
        labels = np.array([0, *(index[one.label] for one in prediction.segments)], np.uint8)
        is_apart = self.is_thing[labels]
        predicted = labels[ids], np.where(is_apart[ids], ids, 0)
        true_labels, numbers = label_indices(annotation, self.labels), object_map(annotation)
        classes = class_map(annotation, self.labels)
        is_thing = np.append(self.is_thing, False)[true_labels.clip(max=len(self.labels))]
        return self._observation(predicted, (classes, np.where(is_thing[numbers], numbers, 0)))

    def _observation(
        self,
        predicted: tuple[npt.NDArray[np.uint8], npt.NDArray[Any]],
        true: tuple[npt.NDArray[np.uint8], npt.NDArray[Any]],
    ) -> Outputs:
        """Return the observation of an image, given labels and objects of pixels of both sides."""
        num_labels = len(self.labels)
        counts = count_segments(segmentation_of(*predicted), segmentation_of(*true), num_labels)
        confusion = confusion_of(true[0], predicted[0], num_labels)
        rows = np.zeros(self.observation_shape, np.float32)
        rows[:_COUNTS] = counts.iou, counts.matched, counts.false_positives, counts.false_negatives
        rows[:_COUNTS, 0] = 0  # the background is no segment
        rows[_COUNTS:] = confusion / confusion.sum(axis=1, keepdims=True).clip(1)
        return rows

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Rows of matches, then the confusion matrix as shares; a column for each label."""
        return _COUNTS + len(self.labels), len(self.labels)

    # --- prediction ---

    def postprocess(self, outputs: Outputs, frame: Frame) -> Prediction:
        """Return the segments at the size of the original."""
        if not np.isfinite(outputs).all():
            return PanopticPrediction(shares=np.full(len(self.labels), np.nan, np.float32))
        found = self.form.find_segments(outputs, frame)
        return self._prediction(found.segments, found.scores)

    def _prediction(self, segments: SegmentMap, scores: Sequence[float]) -> PanopticPrediction:
        """Return the prediction with the segments of one image.

        Args:
            segments: The segments.
            scores: Score of each identifier, that of the background first.
        """
        listed, pixels = [], np.zeros(len(self.labels))
        for number, one in encode_masks(segments.ids).items():
            label = int(segments.labels[number])
            listed.append(Segment(number, self.labels[label], scores[number], one.area, *one.box))
            pixels[label] += one.area
        pixels[0] = segments.ids.size - pixels.sum()
        return PanopticPrediction(
            labels=tuple(label for label, count in zip(self.labels, pixels, strict=True) if count),
            shares=(pixels / segments.ids.size).astype(np.float32),
            segments=tuple(listed),
            segment_map=encode_mask(segments.ids),
        )

    def same_answer(self, prediction: Prediction, other: Prediction) -> bool:
        """Return whether both have as many segments of each label."""
        sides = (Counter(one.label for one in _segments(side)) for side in (prediction, other))
        return next(sides) == next(sides)

    def similarity(self, prediction: Prediction, other: Prediction) -> float:
        """Return the panoptic quality of the segments, see `similarity_of_regions`."""
        return similarity_of_regions(_regions(prediction), _regions(other))

    def is_empty(self, prediction: Prediction) -> bool:
        """Return whether there are no segments."""
        return not _segments(prediction)

    def counts(self, prediction: Prediction, threshold: float | None = None) -> Mapping[str, int]:
        """Return the number of objects of each thing; those without objects are left out."""
        return Counter(one.label for one in _segments(prediction) if one.label in self.things)

    # --- evaluation ---

    @property
    def headline_names(self) -> tuple[str, ...]:
        """Panoptic quality, its two factors, and the mean IoU of pixels."""
        return _HEADLINES

    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Return the names of metrics of all labels, then of each label with true pixels."""
        num_labels = len(self.labels)
        num_pixels = np.ones(num_labels)
        if targets is not None:
            num_pixels = targets.sum(dim=0).cpu().numpy().astype(np.float64)
        there = (num_pixels > 0).astype(np.float64)
        there[0] = 0
        none = np.zeros((1, num_labels))
        counts = PanopticCounts(there[None], there[None], none, none)
        return tuple(self._measure(counts, np.diag(num_pixels)))

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute panoptic quality of all labels, things, stuff and each label, and mean IoU."""
        return self._measure(_matches(outputs), _confusions(outputs, targets))

    def _measure(self, counts: PanopticCounts, confusion: npt.NDArray[Any]) -> dict[str, float]:
        regions = region_metrics(confusion, self.labels)
        groups = {"things": self.is_thing, "stuff": ~self.is_thing}
        found = panoptic_metrics(counts, self.labels, groups)
        return found | {
            name: value
            for name, value in regions.items()
            if name == "mean_iou" or name.startswith("iou[")
        }

    def weighted_metrics(self, outputs: Tensor, targets: Tensor) -> WeightedMetrics:
        """Resample images, with the segments and the pixels of each."""
        of_segments = resampled_panoptic_metrics(_matches(outputs))
        of_pixels = resampled_region_metrics(_confusions(outputs, targets))
        return lambda weights: {
            **of_segments(weights),
            "mean_iou": of_pixels(weights)["mean_iou"],
        }

    def settings(self) -> dict[str, str]:
        """Return which labels are things."""
        return {"things": ", ".join(self.things[:_MAX_LABELS_SHOWN])}

    def section(self, outputs: Tensor, targets: Tensor, metrics: Mapping[str, float]) -> Section:
        """Return the metrics of each label."""
        sums = _matches(outputs).weighted(np.ones(len(outputs)))
        rows = [
            (
                label,
                "thing" if label in self.things else "stuff",
                int(sums.matched[index] + sums.false_negatives[index]),
                *(metrics.get(f"{name}[{label}]") for name in ("pq", "sq", "rq", "iou")),
            )
            for index, label in enumerate(self.labels[: _MAX_LABELS_SHOWN + 1])
            if index
        ]
        headings = ("Label", "Kind", "Segments", "PQ", "SQ", "RQ", "IoU of pixels")
        return Section(tables=[Table("Per-class metrics", headings, rows)])

    def worst_mistakes(self, outputs: Tensor, targets: Tensor, count: int) -> list[Mistake]:
        """Return the images with the lowest panoptic quality of their segments together."""
        counts = _matches(outputs)
        missed, invented = counts.false_negatives, counts.false_positives
        sizes = (counts.matched + (missed + invented) / 2).sum(axis=1)
        wrong = np.where(sizes > 0, 1 - counts.iou.sum(axis=1) / sizes.clip(1e-9), 0.0)
        found = []
        for position in np.argsort(-wrong, kind="stable")[:count].tolist():
            if wrong[position] > 0:
                given, predicted = (
                    describe_counts(self.labels, (counts.matched[position] + side[position]))
                    for side in (missed, invented)
                )
                found.append(Mistake(position, given, predicted, error=float(wrong[position])))
        return found

    # --- results ---

    @classmethod
    def result_types(cls) -> dict[str, pa.DataType]:
        """Return the segments, and the map of their identifiers."""
        import pyarrow as pa

        fields = [pa.field("id", pa.int32()), pa.field("label", pa.string())]
        fields += [pa.field("score", pa.float32()), pa.field("area", pa.int64())]
        fields += [pa.field(name, pa.int32()) for name in ("x", "y", "width", "height")]
        return {"segments": pa.list_(pa.struct(fields)), "segment_map": pa.binary()}

    @classmethod
    def label_types(cls) -> dict[str, pa.DataType]:
        """Return the types of the share of a label, and of the number of its objects."""
        import pyarrow as pa

        return {**super().label_types(), COUNT_PREFIX: pa.int32()}

    @property
    def result_bytes(self) -> int:
        """The shares, and segments of an image of a megapixel or so."""
        return 4 * len(self.labels) + _USUAL_BYTES

    def result_fields(self) -> list[pa.Field]:
        """Return the columns, with the number of objects of each thing as `count_LABEL`."""
        import pyarrow as pa

        counts = [pa.field(COUNT_PREFIX + label, pa.int32()) for label in self.things]
        return [*super().result_fields(), *counts]

    def result_row(self, prediction: Prediction, top_k: int) -> dict[str, Any]:
        """Return segments, their map, shares of labels, and numbers of things."""
        assert isinstance(prediction, PanopticPrediction)
        counts = self.counts(prediction)
        return {
            "segments": [asdict(one) for one in prediction.segments],
            "segment_map": prediction.segment_map,
            **super().result_row(prediction, top_k),
            **{COUNT_PREFIX + label: counts.get(label, 0) for label in self.things},
        }

    def drawing(self, prediction: Prediction, threshold: float | None) -> Drawing | None:
        """Return the map of segments, and boxes of things with labels and scores."""
        assert isinstance(prediction, PanopticPrediction)
        boxes = [
            Box(one.x, one.y, one.width, one.height, one.label, one.score)
            for one in prediction.segments
            if one.label in self.things
        ]
        return Drawing(boxes, mask=prediction.segment_map)

    def true_drawing(self, text: str) -> Drawing | None:
        """Return the true objects, each in a colour."""
        return object_drawing(text)

    def response(
        self, prediction: Prediction, *, top_k: int, threshold: float | None
    ) -> dict[str, Any]:
        """Return segments, their map as a PNG in base64, shares, and numbers of things."""
        assert isinstance(prediction, PanopticPrediction)
        return {
            "segments": [asdict(one) for one in prediction.segments],
            "segment_map": base64.b64encode(prediction.segment_map).decode(),
            "shares": self._shares(prediction),
            "counts": dict(self.counts(prediction)),
        }

    def tensor_specs(self) -> tuple[TensorSpec, ...]:
        """Return shares, segments as JSON, and their maps as PNGs: images differ in their sizes."""
        return (
            TensorSpec("shares", "FP32", (-1, len(self.labels))),
            TensorSpec("segments", "BYTES"),
            TensorSpec("segment_map", "BYTES"),
        )

    def tensors(self, predictions: Sequence[Prediction | None]) -> list[NamedTensor]:
        """Return shares, segments and maps; NaN, no segments and no map for a failed image."""
        shares = np.full((len(predictions), len(self.labels)), np.nan, np.float32)
        texts, maps = ["[]"] * len(predictions), [b""] * len(predictions)
        for place, prediction in enumerate(predictions):
            if isinstance(prediction, PanopticPrediction):
                shares[place], maps[place] = prediction.shares, prediction.segment_map
                texts[place] = json.dumps([asdict(one) for one in prediction.segments])
        return [
            NamedTensor("shares", "FP32", shares.shape, shares),
            text_tensor("segments", texts),
            NamedTensor("segment_map", "BYTES", (len(maps),), maps, has_files=True),
        ]


def _segments(prediction: Prediction) -> Sequence[Segment]:
    return prediction.segments if isinstance(prediction, PanopticPrediction) else ()


def _regions(prediction: Prediction) -> ScoredRegions:
    """Return the segments; none for a failed prediction."""
    assert isinstance(prediction, PanopticPrediction)
    content, segments = prediction.segment_map, prediction.segments
    return ScoredRegions(
        decode_numbers(content) if content else np.zeros((0, 0), np.uint8),
        tuple(one.label for one in segments),
        tuple(one.score for one in segments),
    )


def _matches(outputs: Tensor) -> PanopticCounts:
    """Return the counts of the segments of images (N, C)."""
    rows = outputs[:, :_COUNTS].cpu().numpy().astype(np.float64)
    return PanopticCounts(*(rows[:, row] for row in range(_COUNTS)))


def _confusions(outputs: Tensor, targets: Tensor) -> npt.NDArray[np.float64]:
    """Return the confusion matrices of images (N, C, C), in pixels."""
    return shares_to_counts(outputs[:, _COUNTS:].cpu().numpy(), targets.cpu().numpy())
