"""Multiclass classification: exactly one of several labels holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from eagleray.core.errors import InputError
from eagleray.core.limits import MAX_LABELS
from eagleray.tasks.base import (
    Floats,
    ImageLosses,
    LossOptions,
    Outputs,
    Task,
    WeightedMetrics,
)
from eagleray.tasks.classification.calibration import (
    NUM_BINS,
    Reliability,
    fit_temperature,
    measure_reliability,
)
from eagleray.tasks.classification.hierarchy import Level, LevelHits, levels_of
from eagleray.tasks.classification.label_task import (
    Classification,
    Label,
    Temperature,
    explicit_weights,
    focal_exponent,
    label_index,
    require_class_names,
)
from eagleray.tasks.classification.losses import cross_entropies, soft_cross_entropies
from eagleray.tasks.label_metrics import (
    COUNTED,
    RANKED,
    LabelColumn,
    count_labels,
    count_metrics,
    is_in_top,
    log_losses,
    macro,
    rank_metrics,
    weighted_mean,
)
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.page import Table
from eagleray.tasks.registration import register_task
from eagleray.tasks.tensors import NamedTensor, TensorSpec, number_tensor

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

__all__ = ["Multiclass"]

LABEL_LEVELS = "label_levels"
"""Name of the labels of a hierarchy's levels in results: a column, a member, a tensor."""

_AVERAGES = ("macro", "micro", "weighted")
_MIN_LABELS_FOR_TOP5 = 6
_MAX_PAIRS = 15


@register_task
class Multiclass(Classification):
    """Exactly one of several labels holds."""

    metric_names: ClassVar[tuple[str, ...]] = ("accuracy", "f1_macro", "recall_macro")
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy", "focal")
    training_options: ClassVar[frozenset[str]] = frozenset(
        {"class_weights", "cutmix", "label_smoothing", "sampler"}
    )
    target_dtype: ClassVar[Literal["float32", "int64"]] = "int64"
    only_macro_curves: ClassVar[bool] = True

    name: Literal["multiclass"] = "multiclass"
    labels: Annotated[tuple[Label, ...], Field(min_length=2, max_length=MAX_LABELS, fail_fast=True)]
    temperature: Temperature = 1.0

    @classmethod
    def from_labels(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> Self:
        """Take every label of the table, in alphabetical order."""
        labels = require_class_names(texts, uris)
        if len(labels) < 2:
            raise InputError(
                f"The data have one class only ({labels[0]!r}); a classifier needs two or more."
            )
        return cls(labels=labels)

    def encode(self, text: str) -> int:
        """Return the index of the label."""
        return label_index(self.labels, text)

    # --- training ---

    def default_monitor(self, *, is_balanced: bool, chooses_thresholds: bool) -> str:
        """Return accuracy, or the balanced one: recall averaged over the labels."""
        return "recall_macro" if is_balanced else self.metric_names[0]

    def image_losses(self, options: LossOptions, texts: Sequence[str]) -> ImageLosses:
        """Return the cross-entropy, or the focal loss.

        Balanced weights are `N / (num_labels * count)`: 1 on average over the images.
        """
        import torch

        weights = explicit_weights(options, self.labels)
        if options.class_weights == "balanced":
            counts = Counter(texts)
            present = [max(1, counts[label]) for label in self.labels]
            weights = [len(texts) / (len(present) * count) for count in present]
        return cross_entropies(
            weights=None if weights is None else torch.tensor(weights),
            gamma=focal_exponent(options),
            smoothing=options.label_smoothing,
        )

    def teacher_losses(self, teacher: Task, temperature: float) -> ImageLosses:
        """Return the divergence from the teacher's probabilities of the labels."""
        return soft_cross_entropies(temperature)

    def soft_targets(self, targets: Tensor) -> Tensor:
        """Return probabilities of labels (N, num_labels)."""
        from torch.nn import functional

        return functional.one_hot(targets, len(self.labels)).float()

    def decide(self, outputs: Tensor) -> Tensor:
        """Return the index of the most likely label (N,)."""
        return outputs.argmax(dim=1)

    def training_metrics(self, decisions: Tensor, targets: Tensor) -> dict[str, float]:
        """Return accuracy, and F1 and recall averaged over the labels that an image has."""
        from sklearn.metrics import accuracy_score

        predicted, truth = decisions.cpu().numpy(), self.truth(targets)
        found = count_metrics(predicted, truth, self.labels, _AVERAGES)
        return {"accuracy": float(accuracy_score(truth, predicted)), **found}

    # --- prediction ---

    def confidence(self, logits: Tensor) -> Tensor:
        """Return the logarithm of the sum of exponentials, which the largest logit determines."""
        return logits.logsumexp(dim=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax."""
        return logits.softmax(dim=1)

    def predict_labels(self, probabilities: Outputs) -> Prediction:
        """Take the most likely label."""
        best = int(probabilities.argmax())
        label = self.labels[best]
        return Prediction(label, float(probabilities[best]), (label,), None, probabilities)

    # --- hierarchy ---

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The levels above the labels, where these are paths such as `animal/dog/terrier`."""
        return levels_of(self.labels)

    def label_levels(self, prediction: Prediction) -> list[dict[str, Any]]:
        """Return the most likely node of each level with its probability, and the label last.

        Each level is decided by itself: the node of the label may be another one.
        """
        found = []
        for level in self.levels:
            scores = level.scores(prediction.probabilities[None])[0]
            best = int(scores.argmax())
            found.append({"label": level.nodes[best], "score": float(scores[best])})
        return [*found, {"label": prediction.label, "score": prediction.score}]

    def _level_hits(self, outputs: Tensor, targets: Tensor) -> Iterator[LevelHits]:
        """Yield the true and the predicted nodes of each level."""
        scores, truth = outputs.cpu().numpy(), self.truth(targets)
        for number, level in enumerate(self.levels, start=1):
            predicted = level.scores(scores).argmax(axis=1)
            yield LevelHits(number, level.nodes, level.node_of[truth], predicted)

    # --- evaluation ---

    def constant_prediction(self, targets: Tensor) -> tuple[str, Tensor] | None:
        """Predict the most frequent label, with the frequencies as probabilities."""
        import torch

        counts = torch.bincount(targets.cpu(), minlength=len(self.labels)).float()
        label = self.labels[int(counts.argmax())]
        return f"always predicting the most frequent label {label!r}", counts / counts.sum()

    @property
    def headline_names(self) -> tuple[str, ...]:
        """Accuracy, also of levels, F1, calibration; top-5 accuracy from 6 labels on."""
        top5 = ("top5_accuracy",) if len(self.labels) >= _MIN_LABELS_FOR_TOP5 else ()
        levels = [f"accuracy_level{number}" for number in range(1, len(self.levels) + 1)]
        return ("accuracy", *levels, "f1_macro", *top5, "log_loss", "ece")

    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Return the names of metrics of all labels, then of each label."""
        seen, ranked = self._measurable(targets)
        top5 = ("top5_accuracy", "top5_error") if "top5_accuracy" in self.headline_names else ()
        pooled = [f"{name}_{average}" for name in COUNTED for average in _AVERAGES if seen]
        pooled += [f"{name}_macro" for name in RANKED if ranked]
        of_labels = [f"{name}[{label}]" for name in COUNTED for label in seen]
        of_labels += [f"{name}[{label}]" for name in RANKED for label in ranked]
        of_levels = [
            f"{name}_level{number}"
            for number in range(1, len(self.levels) + 1)
            for name in ("accuracy", "f1_macro")
        ]
        return ("accuracy", "error", *top5, *of_levels, *pooled, "log_loss", "ece", *of_labels)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute accuracy, precision, recall, F1, ranks, log loss and calibration."""
        scores, truth = outputs.cpu().numpy(), self.truth(targets)
        found = self.training_metrics(self.decide(outputs), targets)
        found |= rank_metrics(self.columns(outputs, targets))
        found["error"] = 1.0 - found["accuracy"]
        found["log_loss"] = float(log_losses(scores, truth).mean())
        found["ece"] = self.reliability(outputs, targets).error
        found["top5_accuracy"] = float(is_in_top(scores, truth, 5).mean())
        found["top5_error"] = 1.0 - found["top5_accuracy"]
        for one in self._level_hits(outputs, targets):
            found |= one.metrics
        return {name: found[name] for name in self.measured_names(targets)}

    def weighted_metrics(self, outputs: Tensor, targets: Tensor) -> WeightedMetrics:
        """Resample the headline metrics except for the calibration error."""
        scores, truth, predicted = (
            outputs.cpu().numpy(),
            self.truth(targets),
            self.predicted(outputs),
        )
        means = {"accuracy": predicted == truth, "log_loss": log_losses(scores, truth)}
        if "top5_accuracy" in self.headline_names:
            means["top5_accuracy"] = is_in_top(scores, truth, 5)
        for one in self._level_hits(outputs, targets):
            means[f"accuracy_level{one.number}"] = one.truth == one.predicted

        def metrics(weights: Floats) -> dict[str, Floats]:
            counts = count_labels(predicted, truth, len(self.labels), weights)
            found = {name: weighted_mean(values, weights) for name, values in means.items()}
            return {**found, "f1_macro": macro(counts.f1, counts)}

        return metrics

    def columns(self, outputs: Tensor, targets: Tensor) -> list[LabelColumn]:
        """Return each label against all others."""
        scores, truth = outputs.cpu().numpy(), self.truth(targets)
        return [
            LabelColumn(label, truth == index, scores[:, index])
            for index, label in enumerate(self.labels)
        ]

    def reliability(
        self, outputs: Tensor, targets: Tensor, num_bins: int = NUM_BINS
    ) -> Reliability:
        """Compare the probability of the most likely label with how often it is true."""
        scores = outputs.cpu().numpy().astype(np.float64)
        right = self.predicted(outputs) == self.truth(targets)
        return measure_reliability(scores.max(axis=1), right, num_bins)

    def _logits(self, outputs: Tensor) -> Tensor:
        import torch

        # Up to a constant for each image, which softmax forgets.
        scores = outputs.detach().cpu().double()
        return scores.clamp(min=torch.finfo(torch.float32).tiny).log()

    def _fit_factor(self, logits: Tensor, targets: Tensor) -> float:
        from torch.nn import functional

        truth = self.soft_targets(targets.long().cpu())
        return fit_temperature(logits, truth, functional.cross_entropy, chance=1 / len(self.labels))

    def _more_tables(self, outputs: Tensor, targets: Tensor) -> Iterable[Table]:
        """Return the levels of a hierarchy, and the most common pairs of a mistake."""
        counts = self._confusion(outputs, targets)
        totals = counts.sum(axis=1)
        np.fill_diagonal(counts, 0)
        order = np.argsort(-counts, axis=None, kind="stable")[:_MAX_PAIRS].tolist()
        rows = [
            (
                self.labels[true],
                self.labels[predicted],
                int(counts[true, predicted]),
                float(counts[true, predicted] / totals[true]),
            )
            for true, predicted in (divmod(cell, len(self.labels)) for cell in order)
            if counts[true, predicted]
        ]
        headings = ("True", "Predicted", "Images", "Share of the true class")
        confused = Table("Most confused classes", headings, rows)
        levels = [
            (str(one.number), len(one.nodes), one.accuracy, one.f1_macro)
            for one in self._level_hits(outputs, targets)
        ]
        headings = ("Level", "Labels", "Accuracy", "F1 (macro)")
        return [Table("Levels of the labels", headings, levels), confused]

    # --- results ---

    @classmethod
    def result_types(cls) -> dict[str, pa.DataType]:
        """Return the columns of classification, and the label of each level."""
        import pyarrow as pa

        node = pa.struct({"label": pa.string(), "score": pa.float32()})
        return {**super().result_types(), LABEL_LEVELS: pa.list_(node)}

    def result_row(self, prediction: Prediction, top_k: int) -> dict[str, Any]:
        """Return the values of `result_fields` for a prediction."""
        row = super().result_row(prediction, top_k)
        return {**row, **self._levels_member(prediction)}

    def response(
        self, prediction: Prediction, *, top_k: int, threshold: float | None
    ) -> dict[str, Any]:
        """Return the members of classification, and the label of each level of a hierarchy."""
        members = super().response(prediction, top_k=top_k, threshold=threshold)
        return {**members, **self._levels_member(prediction)}

    def tensor_specs(self) -> tuple[TensorSpec, ...]:
        """Return the tensors of classification, and labels and scores of the levels."""
        specs = super().tensor_specs()
        if not self.levels:
            return specs
        shape = (-1, len(self.levels) + 1)
        return (
            *specs,
            TensorSpec(LABEL_LEVELS, "BYTES", shape),
            TensorSpec("level_scores", "FP32", shape),
        )

    def tensors(self, predictions: Sequence[Prediction | None]) -> list[NamedTensor]:
        """Return the outputs of `tensor_specs`; an empty text and NaN for a failed image."""
        found = super().tensors(predictions)
        if not self.levels:
            return found
        failed: list[dict[str, Any]] = [{"label": "", "score": np.nan}] * (len(self.levels) + 1)
        rows = [failed if one is None else self.label_levels(one) for one in predictions]
        texts = [node["label"].encode() for row in rows for node in row]
        scores = [[node["score"] for node in row] for row in rows]
        shape = (len(rows), len(self.levels) + 1)
        return [
            *found,
            NamedTensor(LABEL_LEVELS, "BYTES", shape, texts),
            number_tensor("level_scores", scores),
        ]

    def _has_column(self, name: str) -> bool:
        return super()._has_column(name) and (name != LABEL_LEVELS or bool(self.levels))

    def _levels_member(self, prediction: Prediction) -> dict[str, Any]:
        return {LABEL_LEVELS: self.label_levels(prediction)} if self.levels else {}
