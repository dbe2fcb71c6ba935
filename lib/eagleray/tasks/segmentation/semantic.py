"""Semantic segmentation: the class of every pixel of an image."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame, Placement
from eagleray.imaging.tiles import Window
from eagleray.tasks.annotation import parse_annotation
from eagleray.tasks.base import (
    Floats,
    ImageLosses,
    LossOptions,
    NetworkOutput,
    Outputs,
    Targets,
    WeightedMetrics,
    only_tensor,
)
from eagleray.tasks.exported import ExportedOutput
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.page import ConfusionMatrix, Drawing, Plot, Section, Table
from eagleray.tasks.registration import register_task
from eagleray.tasks.review import Mistake
from eagleray.tasks.segmentation.class_maps import (
    IGNORED,
    ClassMap,
    ClassMaps,
    class_map,
    decode_mask,
    encode_mask,
    frame_of_all,
    join_maps,
    likeliest_classes,
    move_map,
    resize_map,
)
from eagleray.tasks.segmentation.mask_queries import MaskQueries
from eagleray.tasks.segmentation.pixel_counts import (
    confusion_of,
    confusions_in_batch,
    count_labels,
    shares_to_counts,
)
from eagleray.tasks.segmentation.pixel_task import (
    BACKGROUND,
    PixelTask,
    SharesPrediction,
    require_size,
)
from eagleray.tasks.segmentation.query_objects import label_scores
from eagleray.tasks.segmentation.region_metrics import region_metrics, resampled_region_metrics
from eagleray.tasks.segmentation.similarity import dice_of_maps
from eagleray.tasks.tensors import NamedTensor, TensorSpec
from eagleray.tasks.tiles import TileJoiner

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

__all__ = ["MapPrediction", "Semantic"]

_HEADLINES = ("mean_iou", "mean_dice", "pixel_accuracy")
_GRID = 8  # cells of each side of a summary
_MIN_AGREEMENT = 0.99  # share of pixels with the same class in two predictions that agree
_MAX_LABELS_SHOWN = 50
_USUAL_MASK_BYTES = 20_000  # of a PNG, to estimate the size of a table


@dataclass(frozen=True, slots=True)
class MapPrediction(SharesPrediction):
    """The class of every pixel of one image.

    Attributes:
        mask: PNG of the size of the upright original image, whose gray values are the indices of
            the labels.
    """

    mask: bytes = b""


@register_task
class Semantic(PixelTask):
    """One label for every pixel.

    Attributes:
        enlarges: What is enlarged to the original image before each pixel gets its likeliest label:
            `probabilities`, or the `scores` of the network as they are.
        shows_all: Whether the network's map shows the whole image, whatever its size and aspect
            ratio, instead of the pixels of the input.
        queries: Form of the outputs of a network of mask queries; None for a map of logits.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("mean_iou", "mean_dice")
    output_names: ClassVar[tuple[str, ...] | None] = ()
    predicts_pixels: ClassVar[bool] = True
    joins_tiles: ClassVar[bool] = True
    default_architecture: ClassVar[str] = "unet/resnet18"
    export_example: ClassVar[tuple[str, ...]] = ("maps", "masks")
    export_note: ClassVar[str] = (
        "`predict.py` cuts off what lies beside the image, enlarges the probabilities to the image "
        "file, and takes the likeliest label of each pixel."
    )
    similarity_name: ClassVar[str | None] = "Dice coefficient"

    name: Literal["semantic"] = "semantic"
    enlarges: Literal["probabilities", "scores"] = "probabilities"
    shows_all: bool = False
    queries: MaskQueries | None = None

    @property
    def network_outputs(self) -> dict[str, tuple[int | None, ...]]:
        """A map of logits, or the scores and masks of queries."""
        if self.queries is not None:
            return {**self.queries.shapes(len(self.labels))}
        return {"logits": (self.num_outputs, None, None)}

    @property
    def has_background(self) -> bool:
        """Whether the first label is that of pixels without an object.

        Networks of other programs need not have such a label.
        """
        is_own = self.enlarges == "probabilities" and self.queries is None
        return is_own or self.labels[0] == BACKGROUND

    @property
    def has_exports(self) -> bool:
        """Whether the network returns a map of logits for the pixels of the input."""
        return self.enlarges == "probabilities" and not self.shows_all and self.queries is None

    # --- targets ---

    def _true_map(self, text: str) -> ClassMap:
        beside = 0 if self.has_background else IGNORED
        return class_map(parse_annotation(text), self.labels, beside)

    def open_targets(self, texts: Sequence[str], contract: ImageContract) -> Targets | None:
        """Return class maps, uint8 (N, H, W), which are drawn when they are read."""
        return ClassMaps(texts, self.labels, contract)

    def move_targets(
        self, targets: Tensor, placement: Placement, window: tuple[int, int, int, int]
    ) -> Tensor:
        """Move the class map of one image (H, W); pixels without a known class are ignored."""
        return move_map(targets, placement, window)

    def resize_targets(
        self, targets: Tensor, before: tuple[int, int], after: tuple[int, int]
    ) -> Tensor:
        """Resize the class map of one image (H, W)."""
        return resize_map(targets, after)

    def join_targets(self, targets: Sequence[Tensor]) -> Tensor:
        """Join class maps (H, W), each of which is ignored outside of its window."""
        return join_maps(targets)

    # --- training ---

    def image_losses(self, options: LossOptions, texts: Sequence[str]) -> ImageLosses:
        """Return the cross-entropy of pixels, with the soft Dice loss unless it is named alone."""
        from eagleray.tasks.segmentation.loss import (
            cross_entropy_dice_losses,
            pixel_cross_entropies,
        )

        is_alone = options.name == "cross_entropy"
        return pixel_cross_entropies if is_alone else cross_entropy_dice_losses

    def uninformed_outputs(self, num_images: int) -> Tensor | None:
        """Return nothing: the loss needs class maps, and encoded targets are numbers of pixels."""
        return None

    def observe_batch(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return confusion matrices of shares (N, C, C) and true numbers of pixels (N, C).

        They are those of the network's input.
        """
        counts = confusions_in_batch(targets, outputs.argmax(dim=1), len(self.labels))
        num_pixels = counts.sum(dim=2)
        shares = counts / num_pixels.clamp(min=1)[:, :, None]
        is_finite = outputs.flatten(1).isfinite().all(dim=1)
        shares[~is_finite] = float("nan")
        return shares, num_pixels

    # --- prediction ---

    def activate(self, outputs: NetworkOutput) -> Tensor:
        """Return the softmax of logits (N, C, H, W): probabilities of every pixel's labels.

        Scores that are enlarged as they are stay so; queries become one tensor.
        """
        if self.queries is not None:
            assert isinstance(outputs, Mapping)
            return self.queries.activate(outputs)
        scores = only_tensor(outputs)
        return scores if self.enlarges == "scores" else scores.softmax(dim=1)

    def describe_exported(self, contract: ImageContract) -> tuple[ExportedOutput, ...]:
        """Return the probabilities of pixels."""
        meaning = "Probability of each label for each pixel of the input, in the order of labels."
        shape = (len(self.labels), *contract.size)
        return (ExportedOutput("probabilities", shape, meaning),)

    def num_activated(self, contract: ImageContract) -> int:
        """Return the number of pixels of all maps."""
        return len(self.labels) * contract.size[0] * contract.size[1]

    def postprocess(self, outputs: Outputs, frame: Frame) -> Prediction:
        """Enlarge the probabilities to the original image, and take the most likely labels."""
        is_finite = bool(np.isfinite(outputs).all())
        return self._prediction(self._classes(outputs, frame), is_finite=is_finite)

    def _classes(self, outputs: Outputs, frame: Frame) -> ClassMap:
        """Return the most likely class of every pixel of the upright original image."""
        if self.queries is not None:
            outputs = label_scores(self.queries, outputs)
        if self.shows_all or self.queries is not None:
            frame = frame_of_all(frame, *outputs.shape[1:])
        return likeliest_classes(outputs, frame)

    def join_tiles(self, width: int, height: int) -> TileJoiner:
        """Return what writes the class maps of tiles into that of the image."""
        return _MapJoiner(self, np.zeros((height, width), np.uint8))

    def _prediction(self, classes: ClassMap, *, is_finite: bool) -> Prediction:
        counts = count_labels(classes, len(self.labels))
        shares = (counts / classes.size).astype(np.float32)
        if not is_finite:
            shares[:] = np.nan
        return MapPrediction(
            labels=tuple(label for label, count in zip(self.labels, counts, strict=True) if count),
            mask=encode_mask(classes),
            shares=shares,
        )

    def observe(self, prediction: Prediction, text: str) -> Outputs:
        """Return the image's confusion matrix at the size of the original, as shares (C, C).

        Raises:
            InputError: If the annotation is of an image of another size.
        """
        assert isinstance(prediction, MapPrediction)
        predicted = decode_mask(prediction.mask)
        height, width = predicted.shape
        require_size((height, width), parse_annotation(text))
        true = self._true_map(text)
        counts = confusion_of(true, predicted, len(self.labels))
        shares: Outputs = (counts / counts.sum(axis=1, keepdims=True).clip(1)).astype(np.float32)
        if np.isnan(prediction.shares).any():
            shares[:] = np.nan
        return shares

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """A row for each true label, with the share of each predicted one."""
        return len(self.labels), len(self.labels)

    def summarize(self, outputs: Tensor) -> Tensor:
        """Return the mean probabilities in the cells of a grid (N, num_values)."""
        from torch.nn import functional

        if self.queries is not None:
            return self.queries.summarize(outputs, _GRID)
        if self.enlarges == "scores":
            outputs = outputs.softmax(dim=1)
        return functional.adaptive_avg_pool2d(outputs, _GRID).flatten(1)

    def mean_difference(self, outputs: Floats, expected: Floats) -> float:
        """Return the mean difference of probabilities, also where scores are enlarged."""
        if self.enlarges == "probabilities" and self.queries is None:
            return super().mean_difference(outputs, expected)
        pair = (self._summary(side) for side in (outputs, expected))
        return super().mean_difference(next(pair), next(pair))

    def _summary(self, outputs: Floats) -> Floats:
        import torch

        summary: Floats = self.summarize(torch.from_numpy(np.asarray(outputs, np.float32))).numpy()
        return summary

    @property
    def num_values(self) -> int:
        """A value for each label and cell of the grid."""
        return len(self.labels) * _GRID**2

    def same_answer(self, prediction: Prediction, other: Prediction) -> bool:
        """Return whether 99 % of the pixels have the same label."""
        one, another = (_classes(one) for one in (prediction, other))
        return one.shape == another.shape and bool((one == another).mean() >= _MIN_AGREEMENT)

    def similarity(self, prediction: Prediction, other: Prediction) -> float:
        """Return the Dice coefficient of the pixels that are not background, labels together."""
        one, another = (_classes(one) for one in (prediction, other))
        return dice_of_maps(one, another)

    # --- evaluation ---

    @property
    def headline_names(self) -> tuple[str, ...]:
        """IoU and Dice, averaged over labels, and the share of pixels that are right."""
        return _HEADLINES

    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Return the names of metrics of all labels, then of each label with true pixels."""
        num_pixels = np.ones(len(self.labels))
        if targets is not None:
            num_pixels = targets.sum(dim=0).cpu().numpy()
        return tuple(region_metrics(np.diag(num_pixels), self.labels))

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute IoU, Dice and accuracy of pixels, of all labels together and of each."""
        return region_metrics(_confusions(outputs, targets), self.labels)

    def weighted_metrics(self, outputs: Tensor, targets: Tensor) -> WeightedMetrics:
        """Resample images, with the pixels of each."""
        return resampled_region_metrics(_confusions(outputs, targets))

    def constant_prediction(self, targets: Tensor) -> tuple[str, Tensor] | None:
        """Predict the label of the most pixels everywhere."""
        import torch

        best = int(targets.sum(dim=0).argmax())
        outputs = torch.zeros(self.observation_shape)
        outputs[:, best] = 1
        return f"predicting {self.labels[best]!r} for every pixel", outputs

    def section(self, outputs: Tensor, targets: Tensor, metrics: Mapping[str, float]) -> Section:
        """Return the metrics of each label, and the confusion matrix of pixels."""
        counts = _confusions(outputs, targets).sum(axis=0).astype(np.int64)
        shares = counts.sum(axis=1) / max(1, counts.sum())
        rows = [
            (
                label,
                float(shares[index]),
                *(metrics.get(f"{name}[{label}]") for name in ("iou", "dice", "accuracy")),
            )
            for index, label in enumerate(self.labels[:_MAX_LABELS_SHOWN])
        ]
        headings = ("Label", "Share of the true pixels", "IoU", "Dice", "Accuracy")
        plots: list[Plot] = []
        if len(self.labels) <= _MAX_LABELS_SHOWN:
            plots.append(ConfusionMatrix(self.labels, counts, "Confusion matrix of pixels"))
        return Section(plots=plots, tables=[Table("Per-class metrics", headings, rows)])

    def worst_mistakes(self, outputs: Tensor, targets: Tensor, count: int) -> list[Mistake]:
        """Return the images with the largest share of wrong pixels."""
        counts = _confusions(outputs, targets)
        totals = counts.sum(axis=(1, 2)).clip(1)
        wrong = 1 - np.trace(counts, axis1=1, axis2=2) / totals
        found = []
        for position in np.argsort(-wrong, kind="stable")[:count].tolist():
            if wrong[position] > 0:
                sums = (counts[position].sum(axis=axis) / totals[position] for axis in (1, 0))
                given, predicted = (self._describe(shares) or "nothing" for shares in sums)
                found.append(Mistake(position, given, predicted, error=float(wrong[position])))
        return found

    # --- results ---

    @classmethod
    def result_types(cls) -> dict[str, pa.DataType]:
        """Return the mask: a PNG of indices of labels."""
        import pyarrow as pa

        return {"mask": pa.binary()}

    @property
    def result_bytes(self) -> int:
        """The shares, and a mask of an image of a megapixel or so."""
        return 4 * len(self.labels) + _USUAL_MASK_BYTES

    def result_row(self, prediction: Prediction, top_k: int) -> dict[str, Any]:
        """Return the mask, and the share of each label."""
        assert isinstance(prediction, MapPrediction)
        return {"mask": prediction.mask, **super().result_row(prediction, top_k)}

    def drawing(self, prediction: Prediction, threshold: float | None) -> Drawing | None:
        """Return the mask, in which the background stays as it is."""
        assert isinstance(prediction, MapPrediction)
        if self.has_background:
            return Drawing(mask=prediction.mask)
        return Drawing(mask=_drawn(decode_mask(prediction.mask), has_background=False))

    def true_drawing(self, text: str) -> Drawing | None:
        """Return the true mask; ignored pixels stay as they are."""
        classes = self._true_map(text)
        return Drawing(mask=_drawn(classes, has_background=self.has_background))

    def response(
        self, prediction: Prediction, *, top_k: int, threshold: float | None
    ) -> dict[str, Any]:
        """Return the mask as a PNG in base64, and the share of each label."""
        assert isinstance(prediction, MapPrediction)
        return {
            "mask": base64.b64encode(prediction.mask).decode(),
            "shares": self._shares(prediction),
        }

    def tensor_specs(self) -> tuple[TensorSpec, ...]:
        """Return the shares of the labels, and the masks as PNGs: images differ in their sizes."""
        return (
            TensorSpec("shares", "FP32", (-1, len(self.labels))),
            TensorSpec("mask", "BYTES"),
        )

    def tensors(self, predictions: Sequence[Prediction | None]) -> list[NamedTensor]:
        """Return shares and masks; NaN and an empty mask for a failed image."""
        shares = np.full((len(predictions), len(self.labels)), np.nan, np.float32)
        masks = [b""] * len(predictions)
        for place, prediction in enumerate(predictions):
            if isinstance(prediction, MapPrediction):
                shares[place], masks[place] = prediction.shares, prediction.mask
        return [
            NamedTensor("shares", "FP32", shares.shape, shares),
            NamedTensor("mask", "BYTES", (len(masks),), masks, has_files=True),
        ]


@dataclass(slots=True)
class _MapJoiner:
    """Writes the class maps of tiles into that of their image, with overlaps cut in the middle."""

    task: Semantic
    classes: ClassMap
    is_finite: bool = True

    def add(self, window: Window, outputs: Outputs, frame: Frame) -> None:
        x1, y1, x2, y2 = window.own
        if x1 == x2:  # the whole image, whose pixels the tiles see better
            return
        self.is_finite &= bool(np.isfinite(outputs).all())
        seen = self.task._classes(outputs, frame)
        left, top = window.left, window.top
        self.classes[y1:y2, x1:x2] = seen[y1 - top : y2 - top, x1 - left : x2 - left]

    def prediction(self) -> Prediction:
        return self.task._prediction(self.classes, is_finite=self.is_finite)


def _confusions(outputs: Tensor, targets: Tensor) -> npt.NDArray[np.float64]:
    """Return the confusion matrices of images (N, C, C), in pixels."""
    return shares_to_counts(outputs.cpu().numpy(), targets.cpu().numpy())


def _drawn(classes: ClassMap, *, has_background: bool) -> bytes:
    """Return a map as it is drawn: 0 stays as the image is, such as the background."""
    first = 0 if has_background else 1
    values = classes.astype(np.uint16) + first
    return encode_mask(np.where(classes == IGNORED, 0, values).astype(np.uint16))


def _classes(prediction: Prediction) -> ClassMap:
    assert isinstance(prediction, MapPrediction)
    return decode_mask(prediction.mask)
