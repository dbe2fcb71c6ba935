"""The interface of a task: what a model predicts, from a table's labels to the service's response.

A task is one module with one class and one registration:

    @register_task
    class Ordinal(Task):
        name: Literal["ordinal"] = "ordinal"
        ...

The class is a frozen value: a package stores it as the `task` field of its `model.json`. Nothing
outside of `eagleray.tasks` asks which task it has; it calls the methods below.

PyTorch and scikit-learn are imported inside of the methods that need them, so that a driver and
`--help` stay quick.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from eagleray.core.errors import InputError
from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame, Placement
from eagleray.tasks.exported import ExportedOutput
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.page import Drawing, Section
from eagleray.tasks.review import LabelReview, Mistake
from eagleray.tasks.tensors import NamedTensor, TensorSpec
from eagleray.tasks.tiles import TileJoiner

if TYPE_CHECKING:  # a driver knows a model's task without the seconds and memory of PyTorch
    import pyarrow as pa
    from torch import Tensor

__all__ = [
    "SCORE_PREFIX",
    "Floats",
    "ImageLosses",
    "LossOptions",
    "NetworkOutput",
    "Outputs",
    "Targets",
    "Task",
    "WeightedMetrics",
    "only_tensor",
]

Floats = npt.NDArray[np.floating[Any]]
Outputs = npt.NDArray[np.float32]
"""The activated outputs of one image."""
NetworkOutput: TypeAlias = "Tensor | Mapping[str, Tensor]"
"""What a network returns for a batch: one tensor, or several named ones; images come first."""
ImageLosses: TypeAlias = "Callable[[Any, Tensor], Tensor]"
"""outputs of the network (N, …), targets (N, …) -> losses (N,)"""
WeightedMetrics = Callable[[Floats], dict[str, Floats]]
"""weights of the images (R, N) -> metrics by name, each (R,)"""


class Targets(Protocol):
    """The targets of many images: a tensor (N, …), or what makes those of an image when read."""

    def __getitem__(self, rows: Any, /) -> Tensor:
        """Return the targets of one row (…), or of an int64 array of rows (N, …)."""


_LATER_FIELDS: Mapping[str, Any] = {
    "temperature": 1.0,
    "scores_outliers": False,
    "enlarges": "probabilities",
    "shows_all": False,
    "queries": None,
    "regions": None,
}
"""Fields of tasks that packages made before do not have, with their defaults."""

SCORE_PREFIX = "score_"
"""Prefix of the columns of a result table with the probability of one label each."""


@dataclass(frozen=True, slots=True)
class LossOptions:
    """How images are weighed and losses are shaped in training.

    Attributes:
        name: One of the task's `losses`; None for the first of them.
        class_weights: `balanced` gives every class the same weight in all; weights by label are
            factors of the losses of its images, and 1 for other labels.
        focal_gamma: Exponent of the focal loss, for losses named `focal`.
        huber_delta: Error from which the loss named `huber` grows linearly.
        label_smoothing: Share of the target that goes to all classes alike.
    """

    name: str | None = None
    class_weights: Literal["none", "balanced"] | Mapping[str, float] = "none"
    focal_gamma: float = 2.0
    huber_delta: float = 1.0
    label_smoothing: float = 0.0


class Task(BaseModel):
    """What a model predicts.

    Attributes:
        metric_names: Metrics of an epoch; the first one selects the best epoch by default.
        losses: Names of the losses, the default first.
        training_options: Of `label_smoothing`, `class_weights`, `sampler` and `cutmix` those that
            apply. A balanced sampler needs one label for each image.
        target_dtype: Type of the encoded targets.
        label_coverage: Parts of a split that need every label: `all`, the `train` part, or `none`.
            A split is stratified for `all`.
        has_many_labels: Whether several labels of an image can hold.
        label_kind: What the label of an image is: a text of a table or a folder, or the objects in
            it, in the form of `tasks.annotation`, which label formats such as COCO are read into.
        fitted: Of `temperature` and `thresholds` those that validation images determine.
        has_positive: Whether one label is the positive, which `with_positive` chooses.
        output_names: Names of the tensors that a network returns; none for a single tensor. None
            takes whatever it returns.
        export_example: Parts of the program beside an exported model, which say what it does with
            outputs.
        export_note: What is left to do with the outputs of an exported model, for people.
        similarity_name: Name of the `similarity` of two predictions of one image; None for a task
            whose models are compared by their outputs alone.
        default_architecture: Architecture of a network if none is named.
        predicts_pixels: Whether the network returns a logit for each label of every pixel
            (N, num_outputs, H, W), instead of a row (N, num_outputs).
        main_member: The member of a response that has what the task predicts, for examples.
        instead: What can be done instead of an explanation, as a clause, for a task that has none.
        follows_network: Whether `for_network` makes another task of some networks' outputs.
        loss_outputs: The tensor that a network has to return beside the others, by names of losses.
        joins_tiles: Whether `join_tiles` makes the prediction of an image from its tiles.
        observes_rows: Whether the observation of an image in tiles may have more rows than
            `observation_shape`; rows of zeros say nothing.
        counts_objects: Whether `counts` returns how many objects of each label an image has.
        optional_columns: Columns of `result_types` that a batch job has on request only.
        measures_training: Whether the metrics of an epoch are also computed over its training
            images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    metric_names: ClassVar[tuple[str, ...]]
    losses: ClassVar[tuple[str, ...]]
    training_options: ClassVar[frozenset[str]] = frozenset()
    target_dtype: ClassVar[Literal["float32", "int64"]] = "float32"
    label_coverage: ClassVar[Literal["all", "train", "none"]] = "none"
    has_many_labels: ClassVar[bool] = False
    label_kind: ClassVar[Literal["text", "objects"]] = "text"
    fitted: ClassVar[frozenset[str]] = frozenset()
    has_positive: ClassVar[bool] = False
    output_names: ClassVar[tuple[str, ...] | None] = None
    export_example: ClassVar[tuple[str, ...]] = ("labels",)
    export_note: ClassVar[str] = ""
    similarity_name: ClassVar[str | None] = None
    quantized_similarity: ClassVar[float] = 0.99
    default_architecture: ClassVar[str] = "resnet18"
    predicts_pixels: ClassVar[bool] = False
    main_member: ClassVar[str] = "label"
    instead: ClassVar[str] = (
        "`eagleray evaluate` shows the images with the largest errors, and a classifier can be "
        "explained"
    )
    follows_network: ClassVar[bool] = False
    loss_outputs: ClassVar[Mapping[str, str]] = MappingProxyType({})
    joins_tiles: ClassVar[bool] = False
    observes_rows: ClassVar[bool] = False
    counts_objects: ClassVar[bool] = False
    optional_columns: ClassVar[frozenset[str]] = frozenset()
    measures_training: ClassVar[bool] = True

    if TYPE_CHECKING:  # pydantic would take them for fields of this class
        name: str

        @property
        def labels(self) -> tuple[str, ...]:
            """The labels in the order of the outputs; none for a task without labels."""

    @model_serializer(mode="wrap")
    def _omit_defaults_of_later_fields(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave out later fields with their defaults, as packages made before had none of them.

        They keep their digests.
        """
        fields: dict[str, Any] = serialize(self)
        return {
            name: value
            for name, value in fields.items()
            if name not in _LATER_FIELDS or value != _LATER_FIELDS[name]
        }

    @property
    def as_model(self) -> str:
        """A model of the task with its article, as in `an instance model`."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name} model"

    # --- from a table to targets ---

    @classmethod
    @abstractmethod
    def from_labels(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> Self:
        """Make the task that fits the labels of a training table.

        Args:
            texts: Every label of the table, as written; at least one.
            uris: Locations of the images, to name the one at fault.

        Raises:
            InputError: If the labels do not fit the task.
        """

    @classmethod
    def labels_in(cls, text: str) -> tuple[str, ...]:
        """Return the labels that a text of a table names; none for a task without labels."""
        return (text,)

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Length of the network's output vector."""

    @property
    def network_outputs(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of a network's outputs for one image, by their names in a graph.

        None stands for any length. A single tensor is named `logits`.
        """
        return {"logits": (self.num_outputs,)}

    def for_network(self, shapes: Mapping[str, tuple[int, ...]], contract: ImageContract) -> Self:
        """Return the task of a network, if the task `follows_network`.

        Args:
            shapes: Shapes of the network's outputs for one image by name; none for a single tensor.
            contract: The image contract of the input.
        """
        return self

    @abstractmethod
    def encode(self, text: str) -> int | float | list[float] | list[list[float]]:
        """Return the target of a label as written in a table.

        Raises:
            InputError: If the text is not a label of this task.
        """

    def stack_targets(self, encoded: Sequence[Any]) -> Tensor:
        """Return the targets of images as one tensor (N, …)."""
        import torch

        return torch.tensor(encoded, dtype=getattr(torch, self.target_dtype))

    def targets_in_input(self, targets: Tensor, contract: ImageContract) -> Tensor:
        """Return encoded targets (N, …) as the loss takes them.

        Places, which are encoded in pixels of the upright original, are in pixels of the input
        then.
        """
        return targets

    def open_targets(self, texts: Sequence[str], contract: ImageContract) -> Targets | None:
        """Return targets as the loss takes them, each made when it is read.

        Args:
            texts: Labels of the images, as written.
            contract: The image contract of the input.

        Returns:
            None for a task whose encoded targets are small: those of `targets_in_input`.
        """
        return None

    def move_targets(
        self, targets: Tensor, placement: Placement, window: tuple[int, int, int, int]
    ) -> Tensor:
        """Return the targets of one image (…) after its pixels were moved.

        Args:
            targets: Targets of `targets_in_input`.
            placement: Where the pixels are now.
            window: Edges x1, y1, x2, y2 of the part of the input that the image is seen in.
        """
        return targets

    def resize_targets(
        self, targets: Tensor, before: tuple[int, int], after: tuple[int, int]
    ) -> Tensor:
        """Return the targets of one image (…) after it was resized.

        Args:
            targets: Targets of `targets_in_input`.
            before: (height, width) of the image before.
            after: (height, width) of it now.
        """
        return targets

    def join_targets(self, targets: Sequence[Tensor]) -> Tensor:
        """Return the targets of one image that was put together from several.

        Raises:
            InputError: If images of this task cannot be put together.
        """
        raise InputError(f"Images of a {self.name} task cannot be put together; leave mosaic out.")

    def batch_targets(self, targets: Sequence[Tensor]) -> Tensor:
        """Return the moved targets of images as one tensor (N, …)."""
        import torch

        return torch.stack(list(targets))

    def shape_targets(self, targets: Tensor) -> Tensor:
        """Return encoded targets from their numbers in a row (N, K), as a file keeps them."""
        return targets if self.has_many_labels else targets[:, 0]

    @property
    def positive(self) -> str | None:
        """The label that precision, recall and the threshold are of; None without such a label."""
        return None

    def with_positive(self, label: str) -> Task:
        """Return the task with another positive label.

        Raises:
            InputError: If the task has none, or the label is not one of its labels.
        """
        raise InputError(f"{self.as_model.capitalize()} has no positive label; leave it out.")

    def in_order_of(self, parent: Task) -> Task:
        """Return the task with its labels in the order of a parent with the same ones."""
        if self.name == parent.name and self.labels and set(self.labels) == set(parent.labels):
            return self.model_copy(update={"labels": parent.labels})
        return self

    @property
    def has_outlier_score(self) -> bool:
        """Whether the network returns an outlier score behind its logits."""
        return False

    def with_outlier_score(self) -> Task:
        """Return the task of a network that returns an outlier score behind its logits.

        Raises:
            InputError: If models of this task have none.
        """
        raise InputError(f"{self.as_model.capitalize()} has no outlier score; name a classifier.")

    def drop_outlier_score(self, outputs: Tensor) -> Tensor:
        """Return activated outputs (N, …) without an outlier score."""
        return outputs

    def confidence(self, logits: Tensor) -> Tensor:
        """Return how much a label stands out (N,), from logits (N, num_outputs)."""
        raise NotImplementedError

    def shares_head_with(self, parent: Task) -> bool:
        """Return whether the last layer of a parent's network predicts the same."""
        return (self.name, self.labels) == (parent.name, parent.labels)

    # --- training ---

    def default_monitor(self, *, is_balanced: bool, chooses_thresholds: bool) -> str:
        """Return the metric that selects the best epoch unless another one is named.

        Args:
            is_balanced: Whether classes are weighted or sampled in balance.
            chooses_thresholds: Whether thresholds are chosen after training.
        """
        return self.metric_names[0]

    @abstractmethod
    def image_losses(self, options: LossOptions, texts: Sequence[str]) -> ImageLosses:
        """Return the function from outputs of the network and targets to each image's loss.

        Args:
            options: Which loss, and its parameters.
            texts: Labels of the training part, for class weights.
        """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of the default loss over a batch."""
        return self.image_losses(LossOptions(), ())(outputs, targets).mean()

    def teacher_losses(self, teacher: Task, temperature: float) -> ImageLosses:
        """Return the function from outputs of the network and of a teacher to each image's loss.

        Args:
            teacher: Task of the teacher, with the same name and labels.
            temperature: Divisor of the logits of both, where outputs are logits.

        Raises:
            InputError: If models of this task cannot be taught.
        """
        raise InputError(f"{self.as_model.capitalize()} cannot learn from a teacher; leave it out.")

    def uninformed_outputs(self, num_images: int) -> Tensor | None:
        """Return outputs of a network that knows nothing, all 0; None where these mean nothing."""
        import torch

        return torch.zeros(num_images, self.num_outputs)

    def soft_targets(self, targets: Tensor) -> Tensor:
        """Return targets in a form that can be mixed: probabilities of labels, or numbers."""
        return targets

    def observe_batch(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return observations of images in training, and their encoded targets, for metrics.

        Args:
            outputs: Activated outputs (N, …).
            targets: Targets (N, …) as the loss takes them.
        """
        return outputs, targets

    @abstractmethod
    def decide(self, outputs: Tensor) -> Tensor:
        """Return what `training_metrics` needs of observations, as small as possible."""

    @abstractmethod
    def training_metrics(self, decisions: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the metrics of `metric_names`, as `measure` defines them.

        Args:
            decisions: Finite tensor (N, …) from `decide`.
            targets: Encoded targets (N, …).
        """

    # --- prediction ---

    @abstractmethod
    def activate(self, outputs: NetworkOutput) -> Tensor:
        """Return a network's output as one tensor (N, …): probabilities, values, or objects."""

    @property
    def has_exports(self) -> bool:
        """Whether the methods below describe what the network returns.

        Networks of other programs may have outputs in forms of their own.
        """
        return True

    def exported_outputs(self, outputs: NetworkOutput) -> NetworkOutput:
        """Return what an exported model returns: the activated outputs, as far as graphs go.

        Several are those of `describe_exported`.
        """
        return self.activate(outputs)

    def finish_exported(self, outputs: NetworkOutput) -> Tensor:
        """Return the activated outputs (N, …) of what an exported model returned."""
        return only_tensor(outputs)

    def describe_exported(self, contract: ImageContract) -> tuple[ExportedOutput, ...]:
        """Return what an exported model returns: one output, or several in their order.

        Args:
            contract: The image contract of the model.
        """
        if self.labels:
            meaning = "Probability of each label, in the order of the labels; the temperature is "
            return (ExportedOutput("probabilities", (self.num_values,), f"{meaning}applied."),)
        meaning = "The predicted number, in the unit of the training table."
        return (ExportedOutput("values", (self.num_values,), meaning),)

    def num_activated(self, contract: ImageContract) -> int:
        """Return the number of activated outputs of an image.

        Args:
            contract: The image contract of the model.
        """
        return self.num_values

    @abstractmethod
    def postprocess(self, outputs: Outputs, frame: Frame) -> Prediction:
        """Return the prediction of one image.

        Args:
            outputs: The image's row of the activated outputs.
            frame: Maps places in the network's input to the upright original image.
        """

    def join_tiles(self, width: int, height: int) -> TileJoiner:
        """Return what makes the prediction of an image from its tiles, if the task `joins_tiles`.

        Args:
            width: Width of the upright original in pixels.
            height: Height of the upright original in pixels.
        """
        raise NotImplementedError

    @abstractmethod
    def outputs_of(self, prediction: Prediction) -> Outputs:
        """Return the activated outputs that a prediction was made from."""

    def observe(self, prediction: Prediction, text: str) -> Outputs:
        """Return what metrics need of an image: its activated outputs, or a smaller observation.

        Args:
            prediction: The prediction of the image.
            text: Its label as written.

        Raises:
            InputError: If the label does not fit the image.
        """
        return self.outputs_of(prediction)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of the observation of an image."""
        return (self.num_values,)

    def summarize(self, outputs: Tensor) -> Tensor:
        """Return activated outputs (N, …) as a few numbers (N, num_values), to compare models by.

        Packages keep those of their golden images.
        """
        return outputs.flatten(1)

    @property
    @abstractmethod
    def num_values(self) -> int:
        """Number of values in the summary of an image's activated outputs."""

    @property
    def unit(self) -> float:
        """Unit of tolerances on activated outputs: 1 for probabilities."""
        return 1.0

    def max_difference(self, outputs: Floats, expected: Floats) -> float:
        """Return how far summaries (N, num_values) are from those expected; NaN for NaN."""
        return float(np.abs(outputs - expected).max())

    def mean_difference(self, outputs: Floats, expected: Floats) -> float:
        """Return the mean difference of activated outputs (N, …) from those expected."""
        return float(np.abs(outputs - expected).mean())

    def variation(self, outputs: Floats) -> float | None:
        """Return the mean absolute deviation of activated outputs (N, …) between images.

        None for a single image, and where outputs of several images cannot be compared.
        """
        if len(outputs) < 2:
            return None
        return float(np.abs(outputs - outputs.mean(axis=0)).mean())

    def same_answer(self, prediction: Prediction, other: Prediction) -> bool:
        """Return whether two versions of a model predict the same, as callers see it."""
        return prediction.labels == other.labels

    def similarity(self, prediction: Prediction, other: Prediction) -> float:
        """Return how alike two predictions of one image are, from 0 to 1.

        It is called for a task with a `similarity_name`.
        """
        raise NotImplementedError

    def is_empty(self, prediction: Prediction) -> bool:
        """Return whether a prediction has no objects, by which two models could be compared."""
        return False

    def describe(self, prediction: Prediction) -> str | None:
        """Return a prediction in one word, for lists of differences."""
        return "|".join(prediction.labels) or None

    # --- explanation ---

    def explained_label(self, prediction: Prediction) -> str:
        """Return the label whose evidence explains a prediction.

        Raises:
            InputError: If the task has no labels.
        """
        raise InputError(
            f"{self.as_model.capitalize()} predicts no label that could be explained; "
            f"{self.instead}."
        )

    def label_evidence(self, outputs: NetworkOutput, label: str) -> Tensor:
        """Return the evidence for a label before it becomes a probability: its logit (N,).

        Args:
            outputs: Output of the network (N, num_outputs).
            label: One of the labels.

        Raises:
            InputError: If the task has no labels, or no logit for each.
            UnknownNameError: If there is no such label.
        """
        raise InputError(
            f"{self.as_model.capitalize()} predicts no label that could be explained; "
            f"{self.instead}."
        )

    # --- evaluation ---

    @property
    @abstractmethod
    def headline_names(self) -> tuple[str, ...]:
        """Names of the metrics that summarise a model, the first of `metric_names` first."""

    @abstractmethod
    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Return the names of what `measure` computes, in its order.

        Args:
            targets: Encoded targets (N, …) of the data; None for data in which every label is true
                of some images and not of others.
        """

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute every metric; a metric of one label is named `recall[defect]`.

        Args:
            outputs: Finite observations (N, …), float32: activated outputs, or what `observe` makes
                of predictions.
            targets: Encoded targets (N, …).

        Returns:
            Finite metrics by name, those of `measured_names(targets)`.
        """

    @abstractmethod
    def weighted_metrics(self, outputs: Tensor, targets: Tensor) -> WeightedMetrics:
        """Return the function from weights of the images to headline metrics, for resampling.

        The function is fast, and equals `measure` for weights of 1. A metric that is not defined
        for some weights is NaN there.
        """

    def fit(self, outputs: Tensor, targets: Tensor, wanted: Collection[str]) -> Task:
        """Return the task with what validation images determine.

        Args:
            outputs: Activated outputs (N, …) of images that the model has not learned.
            targets: Encoded targets (N, …).
            wanted: Names of `fitted`; others are ignored.
        """
        return self

    def choose_thresholds(self, outputs: Tensor, targets: Tensor, *, goal: str = "f1") -> Self:
        """Return the task with a threshold for each label.

        Args:
            outputs: float32 tensor (N, num_labels) of probabilities of validation images.
            targets: Encoded targets (N, …).
            goal: `f1` for the highest F1; `recall>=0.99` for the highest precision with that
                recall; `precision>=0.9` for the highest recall with that precision.

        Raises:
            InputError: If the task has no thresholds, or the goal is invalid or out of reach.
        """
        raise InputError(f"{self.as_model.capitalize()} has no thresholds to choose.")

    def constant_prediction(self, targets: Tensor) -> tuple[str, Tensor] | None:
        """Return the best prediction that looks at no image: the baseline of a trained model.

        Args:
            targets: Encoded targets (N, …) of the training split.

        Returns:
            What is predicted, in words, and the activated outputs of one image, float32; None if
            the task has no such prediction.
        """
        return None

    def settings(self) -> dict[str, str]:
        """Return what turns this model's outputs into predictions, by name, as text for people.

        Such are the order of the labels, the positive label, thresholds and the temperature.
        """
        return {}

    @property
    def fit_warnings(self) -> tuple[str, ...]:
        """Sentences on what `fit` could not determine well."""
        return ()

    def facts(self, outputs: Tensor, targets: Tensor) -> dict[str, str]:
        """Return facts for the page of an evaluation, beside those of `settings`."""
        return {}

    @abstractmethod
    def section(self, outputs: Tensor, targets: Tensor, metrics: Mapping[str, float]) -> Section:
        """Return the plots and tables of the page of an evaluation."""

    @abstractmethod
    def worst_mistakes(self, outputs: Tensor, targets: Tensor, count: int) -> list[Mistake]:
        """Return the wrong predictions of the highest confidence, or the largest errors."""

    def review_labels(self, outputs: Tensor, targets: Tensor) -> LabelReview:
        """Return the labels that confident predictions contradict, the clearest first."""
        return LabelReview()

    # --- results ---

    @classmethod
    def result_types(cls) -> dict[str, pa.DataType]:
        """Return the task's columns of a result table, those that do not depend on its labels."""
        import pyarrow as pa

        return {
            "label": pa.string(),
            "score": pa.float32(),
            "labels": pa.list_(pa.string()),
            "value": pa.float64(),
            "top_k": pa.list_(pa.struct({"label": pa.string(), "score": pa.float32()})),
        }

    @classmethod
    def label_types(cls) -> dict[str, pa.DataType]:
        """Return the types of the columns of one label each, by the prefix of their names."""
        import pyarrow as pa

        return {SCORE_PREFIX: pa.float32()}

    @property
    def result_bytes(self) -> int:
        """About how many bytes the columns of `result_fields` take in a row."""
        return 4 * len(self.labels)

    def result_fields(self) -> list[pa.Field]:
        """Return the columns of a batch job's result table between `message` and `width`.

        They are those of `result_types`, and columns of one label each, named by a prefix of
        `label_types` and the label.
        """
        import pyarrow as pa

        return [pa.field(name, data_type) for name, data_type in self.result_types().items()]

    def result_row(self, prediction: Prediction, top_k: int) -> dict[str, Any]:
        """Return the values of `result_fields` for a prediction.

        Args:
            prediction: The prediction.
            top_k: Number of labels to list with their probabilities.
        """
        return {
            "label": prediction.label,
            "score": prediction.score,
            "labels": list(prediction.labels),
            "value": prediction.value,
            "top_k": self._top(prediction, top_k),
        }

    def counts(self, prediction: Prediction, threshold: float | None = None) -> Mapping[str, int]:
        """Return the number of objects of each label, for a task that `counts_objects`.

        Args:
            prediction: The prediction.
            threshold: Lowest score of an object that counts; None for the model's own thresholds.
        """
        raise NotImplementedError

    def drawing(self, prediction: Prediction, threshold: float | None) -> Drawing | None:
        """Return what is drawn over an image; None for a task that says no places.

        Args:
            prediction: The prediction.
            threshold: Lowest score of an object; None for the task's own.
        """
        return None

    def true_drawing(self, text: str) -> Drawing | None:
        """Return what is drawn of the label of an image; None for a task that says no pixels.

        Args:
            text: Label as written.
        """
        return None

    def response(
        self, prediction: Prediction, *, top_k: int, threshold: float | None
    ) -> dict[str, Any]:
        """Return the members of the service's JSON for a prediction.

        Args:
            prediction: The prediction.
            top_k: Largest number of labels to list with their probabilities.
            threshold: Lowest probability of a label that is listed, and of one that holds where
                several may; None for the task's own.
        """
        limit = float("-inf") if threshold is None else threshold
        top = [entry for entry in self._top(prediction, top_k) if entry["score"] >= limit]
        return {
            "label": prediction.label,
            "score": prediction.score,
            "labels": list(prediction.labels),
            "value": prediction.value,
            "top": top,
        }

    def _top(self, prediction: Prediction, count: int) -> list[dict[str, Any]]:
        return [
            {"label": label, "score": score} for label, score in prediction.top(self.labels, count)
        ]

    @abstractmethod
    def tensor_specs(self) -> tuple[TensorSpec, ...]:
        """Return the outputs of the Open Inference Protocol, beside `status`."""

    @abstractmethod
    def tensors(self, predictions: Sequence[Prediction | None]) -> list[NamedTensor]:
        """Return the outputs of `tensor_specs` for images; None stands for a failed image."""


def only_tensor(outputs: NetworkOutput) -> Tensor:
    """Return the output of a network that has one.

    Raises:
        TypeError: If the network returned several named tensors.
    """
    if isinstance(outputs, Mapping):
        raise TypeError(f"the network returned {', '.join(outputs)}, the task takes one tensor")
    return outputs
