"""What tasks with labels share: labels of a table, calibration, metrics, tensors and plots."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat, model_validator

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.limits import MAX_LABELS, MAX_MANIFEST_BYTES, MAX_NAME_LENGTH
from eagleray.imaging.geometry import Frame
from eagleray.tasks.base import LossOptions, NetworkOutput, Outputs, Task, only_tensor
from eagleray.tasks.classification.calibration import (
    NUM_BINS,
    Reliability,
    fit_temperature,
    temperature_warnings,
)
from eagleray.tasks.classification.curves import Curve, precision_recall_curves, roc_curves
from eagleray.tasks.label_metrics import (
    COUNTED,
    MIN_PROBABILITY,
    RANKED,
    LabelColumn,
    count_labels,
)
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.page import ConfusionMatrix, Curves, Line, Plot, Section, Table
from eagleray.tasks.review import LabelReview, Mistake, contradicted_labels
from eagleray.tasks.tensors import NamedTensor, TensorSpec, number_tensor, text_tensor

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

__all__ = [
    "OUTLIER_SCORE",
    "Classification",
    "Integers",
    "Label",
    "Probability",
    "Temperature",
    "explicit_weights",
    "focal_exponent",
    "label_index",
    "positive_weights",
    "require_class_names",
    "require_modest_labels",
]

Integers = npt.NDArray[np.int64]
Label = Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Temperature = Annotated[FiniteFloat, Field(gt=0.0)]
"""Divisor of logits before they become probabilities; above 1, it makes them less confident."""

OUTLIER_SCORE = "outlier_score"
"""Name of the outlier score in results: a column, a member of a response, a tensor."""

_MAX_CLASSES_DRAWN = 50
_MAX_CLASSES_CURVED = 200
_MAX_LABELS_LISTED = 50


class Classification(Task):
    """A task whose outputs are probabilities of labels (N, num_labels).

    A network with outlier statistics returns one more number for each image: the outlier score,
    behind the logits, and behind the probabilities of the activated outputs.

    Attributes:
        scores_outliers: Whether the model has outlier statistics.
        only_macro_curves: Whether plots show the average of the labels' curves alone.
    """

    training_options: ClassVar[frozenset[str]] = frozenset({"class_weights", "cutmix"})
    label_coverage: ClassVar[Literal["all", "train", "none"]] = "all"
    fitted: ClassVar[frozenset[str]] = frozenset({"temperature"})
    only_macro_curves: ClassVar[bool] = False
    output_names: ClassVar[tuple[str, ...] | None] = ()

    scores_outliers: bool = False

    if TYPE_CHECKING:
        temperature: float

    @model_validator(mode="after")
    def _require_unique_labels(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be unique")
        return self

    @property
    def num_outputs(self) -> int:
        """One logit for each label."""
        return len(self.labels)

    @property
    def num_values(self) -> int:
        """One probability for each label."""
        return len(self.labels)

    @property
    def network_outputs(self) -> dict[str, tuple[int | None, ...]]:
        """The logits, with the outlier score behind them if there is one."""
        return {"logits": (self.num_outputs + self.scores_outliers,)}

    def outputs_of(self, prediction: Prediction) -> Outputs:
        """Return the probabilities."""
        return prediction.probabilities

    def summarize(self, outputs: Tensor) -> Tensor:
        """Return the probabilities, without an outlier score."""
        return self.drop_outlier_score(outputs)

    # --- outliers ---

    @property
    def has_outlier_score(self) -> bool:
        """Whether the model has outlier statistics."""
        return self.scores_outliers

    def with_outlier_score(self) -> Self:
        """Return the task of a model with outlier statistics.

        Raises:
            InputError: If the task of an extension takes logits alone.
        """
        if type(self).activate is not Classification.activate:
            raise InputError(
                f"A {self.name} model has no outlier score, as its task activates outputs by "
                "itself; let it define `probabilities` instead of `activate`."
            )
        return self.model_copy(update={"scores_outliers": True})

    def drop_outlier_score(self, outputs: Tensor) -> Tensor:
        """Return the probabilities."""
        return outputs[:, : self.num_values]

    def exported_outputs(self, outputs: NetworkOutput) -> NetworkOutput:
        """Return the probabilities: an exported model has no outlier score."""
        return self.drop_outlier_score(self.activate(outputs))

    def confidence(self, logits: Tensor) -> Tensor:
        """Return the mean of log(exp(z / 2) + exp(-z / 2)): how far labels are from undecided."""
        from torch.nn import functional

        return (functional.softplus(logits) - logits / 2).mean(dim=1)

    # --- prediction ---

    def activate(self, outputs: NetworkOutput) -> Tensor:
        """Return probabilities (N, num_labels), and behind them the outlier score if there is one.

        Args:
            outputs: Logits (N, num_outputs), and behind them the outlier score if there is one.
        """
        import torch

        row = only_tensor(outputs)
        probabilities = self.probabilities(row[:, : self.num_outputs] / self.temperature)
        if row.shape[1] == self.num_outputs:
            return probabilities
        return torch.cat([probabilities, row[:, self.num_outputs :]], dim=1)

    def postprocess(self, outputs: Outputs, frame: Frame) -> Prediction:
        """Return the labels that hold, and the outlier score if there is one."""
        prediction = self.predict_labels(outputs[: self.num_values])
        if len(outputs) == self.num_values:
            return prediction
        return replace(prediction, outlier_score=float(outputs[self.num_values]))

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities (N, num_labels) of logits (N, num_outputs) at the temperature."""

    @abstractmethod
    def predict_labels(self, probabilities: Outputs) -> Prediction:
        """Return the labels that hold, from the probabilities of one image (num_labels,)."""

    # --- explanation ---

    def explained_label(self, prediction: Prediction) -> str:
        """Return the predicted label; the most likely one where no label holds."""
        return prediction.label or prediction.top(self.labels, 1)[0][0]

    def label_evidence(self, outputs: NetworkOutput, label: str) -> Tensor:
        """Return the logit of a label (N,)."""
        if self.num_outputs != len(self.labels):
            raise InputError(f"A {self.name} model has no logit for each label to explain.")
        return only_tensor(outputs)[:, self.position_of(label)]

    def position_of(self, label: str) -> int:
        """Return the position of a label.

        Raises:
            UnknownNameError: If there is no such label.
        """
        if label not in self.labels:
            raise UnknownNameError("label of the model", label, self.labels)
        return self.labels.index(label)

    # --- what differs from task to task ---

    @abstractmethod
    def columns(self, outputs: Tensor, targets: Tensor) -> list[LabelColumn]:
        """Return each label against all others, those that are ranked and have thresholds."""

    @abstractmethod
    def reliability(
        self, outputs: Tensor, targets: Tensor, num_bins: int = NUM_BINS
    ) -> Reliability:
        """Compare probabilities with what came true.

        Args:
            outputs: float32 tensor (N, num_labels) of probabilities.
            targets: Encoded targets (N, …).
            num_bins: Number of bins of equal width.
        """

    def truth(self, targets: Tensor) -> Integers:
        """Return encoded targets as indices of labels (N,), or as 0 and 1 (N, num_labels)."""
        return np.asarray(targets.cpu().numpy(), np.int64)

    def predicted(self, outputs: Tensor) -> Integers:
        """Return the predicted labels in the form of `truth`."""
        return np.asarray(self.decide(outputs).cpu().numpy(), np.int64)

    # --- calibration: here for labels that hold or not, each on its own ---

    def _logits(self, outputs: Tensor) -> Tensor:
        """Recover logits, divided by the temperature, from probabilities, as float64."""
        positive = outputs.detach().cpu().double()[:, -self.num_outputs :]
        return positive.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).logit()

    def _fit_factor(self, logits: Tensor, targets: Tensor) -> float:
        """Return the temperature of logits that are divided by the task's own already."""
        from torch.nn import functional

        truth = targets.cpu().reshape(len(targets), -1)
        loss = functional.binary_cross_entropy_with_logits
        return fit_temperature(logits, truth, loss, chance=0.5)

    def fitted_temperature(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the temperature under which these targets are most likely.

        Fit it on images that the model has not learned, and measure the model on others.

        Args:
            outputs: float32 tensor (N, num_labels) of probabilities at the task's temperature.
            targets: Encoded targets (N, …).

        Returns:
            The temperature that the task should have, between 0.05 and 20 times its own.
        """
        return self.temperature * self._fit_factor(self._logits(outputs), targets)

    def at_temperature(self, outputs: Tensor, temperature: float) -> Tensor:
        """Return what the outputs would be at another temperature, float32."""
        other = self.model_copy(update={"temperature": temperature / self.temperature})
        return other.activate(self._logits(outputs)).float()

    def fit(self, outputs: Tensor, targets: Tensor, wanted: Collection[str]) -> Task:
        """Fit the temperature first, since it moves probabilities and not thresholds."""
        task: Task = self
        if "temperature" in wanted:
            temperature = self.fitted_temperature(outputs, targets)
            outputs = self.at_temperature(outputs, temperature)
            task = self.model_copy(update={"temperature": temperature})
        if "thresholds" in self.fitted.intersection(wanted):
            task = task.choose_thresholds(outputs, targets)
        return task

    def settings(self) -> dict[str, str]:
        """Return the labels in the order of the outputs, and the temperature."""
        shown = ", ".join(self.labels[:_MAX_LABELS_LISTED])
        more = len(self.labels) - _MAX_LABELS_LISTED
        return {
            "labels in order": f"{len(self.labels):,}: {shown}"
            + f", and {more:,} more" * (more > 0),
            "temperature": f"{self.temperature:.3g}",
            **({"outlier score": "yes"} if self.scores_outliers else {}),
        }

    @property
    def fit_warnings(self) -> tuple[str, ...]:
        """A sentence on a temperature that lies at a limit of the fit."""
        return temperature_warnings(self.temperature)

    def facts(self, outputs: Tensor, targets: Tensor) -> dict[str, str]:
        """Return the temperature that fits these images."""
        best = self.fitted_temperature(outputs, targets)
        return {"temperature that fits these images": f"{best:.3g}"}

    # --- metrics ---

    def _measurable(self, targets: Tensor | None) -> tuple[list[str], list[str]]:
        """Return the labels that are true of an image, and those also untrue of another."""
        if targets is None:
            return list(self.labels), list(self.labels)
        pairs = list(zip(self.labels, self._num_images(targets), strict=True))
        seen = [label for label, count in pairs if count]
        return seen, [label for label, count in pairs if 0 < count < len(targets)]

    def _num_images(self, targets: Tensor) -> list[int]:
        truth = self.truth(targets)
        counts: list[int] = count_labels(truth, truth, len(self.labels)).true.astype(int).tolist()
        return counts

    # --- images to review: here for one label of each image ---

    def worst_mistakes(self, outputs: Tensor, targets: Tensor, count: int) -> list[Mistake]:
        """Return the wrong labels of the highest probability."""
        truth, predicted = self.truth(targets), self.predicted(outputs)
        scores = outputs.cpu().numpy()
        wrong = np.flatnonzero(predicted != truth)
        confidence = scores[wrong, predicted[wrong]]
        return [
            Mistake(
                int(at),
                self.labels[truth[at]],
                self.labels[predicted[at]],
                confidence=float(scores[at, predicted[at]]),
            )
            for at in wrong[np.argsort(-confidence, kind="stable")[:count]]
        ]

    def review_labels(self, outputs: Tensor, targets: Tensor) -> LabelReview:
        """Return the labels that confident predictions contradict, the clearest first."""
        return contradicted_labels(outputs.cpu().numpy(), self.truth(targets), self.labels)

    # --- the page ---

    def section(self, outputs: Tensor, targets: Tensor, metrics: Mapping[str, float]) -> Section:
        """Return the confusion matrix, curves, calibration and the metrics of each class."""
        plots = self._confusion_plots(outputs, targets)
        if len(self.labels) <= _MAX_CLASSES_CURVED:
            plots += _curve_plots(self.columns(outputs, targets), self.only_macro_curves)
        plots.append(self._calibration_plot(outputs, targets))
        tables = [self._class_table(targets, metrics), *self._more_tables(outputs, targets)]
        return Section(plots, [table for table in tables if table.rows])

    def _confusion_plots(self, outputs: Tensor, targets: Tensor) -> list[Plot]:
        if len(self.labels) > _MAX_CLASSES_DRAWN:
            return []
        counts = self._confusion(outputs, targets)
        return [ConfusionMatrix(self.labels, counts, "Confusion matrix")]

    def _confusion(self, outputs: Tensor, targets: Tensor) -> Integers:
        """Return the number of images by true and predicted label (num_labels, num_labels)."""
        length = len(self.labels)
        cells = self.truth(targets) * length + self.predicted(outputs)
        return np.bincount(cells, minlength=length**2).reshape(length, length)

    def _calibration_plot(self, outputs: Tensor, targets: Tensor) -> Curves:
        lines = [_reliability_line("as predicted", self.reliability(outputs, targets))]
        if self.temperature != 1.0:
            before = self.reliability(self.at_temperature(outputs, 1.0), targets)
            name = f"without the temperature {self.temperature:.3g}"
            lines.append(_reliability_line(name, before))
        return Curves(lines, "Calibration", "predicted probability", "observed frequency", True)

    def _class_table(self, targets: Tensor, metrics: Mapping[str, float]) -> Table:
        """Return a row for each label that an image has, the lowest F1 first."""
        names = (*COUNTED, *RANKED)
        rows = [
            (label, count, *(metrics.get(f"{name}[{label}]") for name in names))
            for label, count in zip(self.labels, self._num_images(targets), strict=True)
            if count
        ]
        rows.sort(key=lambda row: metrics[f"f1[{row[0]}]"])
        headings = ("Precision", "Recall", "F1", "Average precision", "ROC AUC")
        return Table("Per-class metrics", ("Class", "Images", *headings), rows)

    def _more_tables(self, outputs: Tensor, targets: Tensor) -> Iterable[Table]:
        return ()

    # --- results ---

    @classmethod
    def result_types(cls) -> dict[str, pa.DataType]:
        """Return the columns of every task, and the outlier score."""
        import pyarrow as pa

        return {**super().result_types(), OUTLIER_SCORE: pa.float32()}

    def result_fields(self) -> list[pa.Field]:
        """Return the columns that apply: an outlier score only if there is one."""
        return [one for one in super().result_fields() if self._has_column(one.name)]

    def result_row(self, prediction: Prediction, top_k: int) -> dict[str, Any]:
        """Return the values of `result_fields` for a prediction."""
        row = super().result_row(prediction, top_k)
        return {**row, **self._outlier_member(prediction)}

    def response(
        self, prediction: Prediction, *, top_k: int, threshold: float | None
    ) -> dict[str, Any]:
        """Return the labels and values of every task, and the outlier score if there is one."""
        members = super().response(prediction, top_k=top_k, threshold=threshold)
        return {**members, **self._outlier_member(prediction)}

    def _has_column(self, name: str) -> bool:
        return self.scores_outliers or name != OUTLIER_SCORE

    def _outlier_member(self, prediction: Prediction) -> dict[str, Any]:
        return {OUTLIER_SCORE: prediction.outlier_score} if self.scores_outliers else {}

    # --- the Open Inference Protocol ---

    def tensor_specs(self) -> tuple[TensorSpec, ...]:
        """Return the label, its score, all probabilities, and the outlier score if there is one."""
        specs = (
            TensorSpec("label", "BYTES"),
            TensorSpec("score", "FP32"),
            TensorSpec("probabilities", "FP32", (-1, len(self.labels))),
            TensorSpec(OUTLIER_SCORE, "FP32"),
        )
        return tuple(one for one in specs if self._has_column(one.name))

    def tensors(self, predictions: Sequence[Prediction | None]) -> list[NamedTensor]:
        """Return the outputs of `tensor_specs`; NaN for a failed image."""
        unknown = np.full(len(self.labels), np.nan, np.float32)
        scores: list[Any] = [np.nan if one is None else one.score for one in predictions]
        rows = [unknown if one is None else one.probabilities for one in predictions]
        found = [
            text_tensor("label", ["" if one is None else one.label or "" for one in predictions]),
            number_tensor("score", scores),
            number_tensor("probabilities", np.stack(rows)),
        ]
        if self.scores_outliers:
            unusual: list[Any] = [
                np.nan if one is None else one.outlier_score for one in predictions
            ]
            found.append(number_tensor(OUTLIER_SCORE, unusual))
        return found


# --- plots --------------------------------------------------------------------------------------


def _curve_plots(columns: Sequence[LabelColumn], only_macro: bool) -> list[Plot]:
    roc = roc_curves(columns, only_macro=only_macro)
    precision = precision_recall_curves(columns, only_macro=only_macro)
    if not roc:
        return []
    return [
        Curves(_as_lines(roc), "ROC", "false positive rate", "recall", True),
        Curves(_as_lines(precision), "Precision and recall", "recall", "precision"),
    ]


def _as_lines(found: Sequence[Curve]) -> list[Line]:
    return [(curve.name, curve.x.tolist(), curve.y.tolist()) for curve in found]


def _reliability_line(name: str, found: Reliability) -> Line:
    full = found.counts > 0
    text = f"{name} (calibration error {found.error:.3f})"
    return text, found.confidence[full].tolist(), found.frequency[full].tolist()


# --- labels of a table --------------------------------------------------------------------------


def label_index(labels: Sequence[str], text: str) -> int:
    """Return the index of a label.

    Raises:
        InputError: If it is not there.
    """
    try:
        return labels.index(text)
    except ValueError:
        raise InputError(f"{text!r} is not a label of this model.") from None


def require_class_names(texts: Sequence[str], uris: Sequence[str]) -> tuple[str, ...]:
    """Return the sorted classes of a table in which every image has exactly one.

    Raises:
        InputError: If a label is empty, or no package can hold the labels.
    """
    labels = tuple(sorted(set(texts)))
    require_modest_labels(labels)
    if "" in labels:
        which = f" ({uris[texts.index('')]})" if uris else ""
        raise InputError(f"A row{which} has an empty label; name its class, or leave the row out.")
    return labels


def require_modest_labels(labels: Collection[str]) -> None:
    """Refuse labels that no package can hold, before a model is trained on them.

    Raises:
        InputError: If there are too many labels, or they are too long.
    """
    if len(labels) > MAX_LABELS:
        raise InputError(
            f"The data have {len(labels):,} labels, {MAX_LABELS:,} is the limit; group them."
        )
    longest = max(labels, key=len, default="")
    if len(longest) > MAX_NAME_LENGTH:
        raise InputError(
            f"The label that begins with {longest[:40]!r} has {len(longest):,} characters, "
            f"{MAX_NAME_LENGTH:,} is the limit; name it shorter."
        )
    num_bytes = len(json.dumps(list(labels)))
    if num_bytes > MAX_MANIFEST_BYTES // 2:  # a manifest holds more than labels
        raise InputError(
            f"The labels have {num_bytes:,} bytes in all, {MAX_MANIFEST_BYTES // 2:,} is the "
            "limit; name them shorter."
        )


def positive_weights(labels: Sequence[str], held: Iterable[str], num_images: int) -> Tensor:
    """Return the number of negatives for each positive of some labels, float32."""
    import torch

    counts = Counter(held)
    present = [max(1, counts[label]) for label in labels]
    return torch.tensor([(num_images - count) / count for count in present])


def explicit_weights(options: LossOptions, labels: Sequence[str]) -> list[float] | None:
    """Return the weight of each label if the options name weights; 1 for labels without one."""
    if isinstance(options.class_weights, str):
        return None
    return [options.class_weights.get(label, 1.0) for label in labels]


def focal_exponent(options: LossOptions) -> float:
    """Return the exponent of the focal loss; 0 for another loss."""
    return options.focal_gamma if options.name == "focal" else 0.0
