"""Multiclass classification: exactly one of several labels holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

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
from eagleray.tasks.calibration import (
    NUM_BINS,
    Reliability,
    fit_temperature,
    measure_reliability,
)
from eagleray.tasks.classification import (
    Classification,
    Label,
    Temperature,
    explicit_weights,
    focal_exponent,
    label_index,
    require_class_names,
)
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
from eagleray.tasks.losses import cross_entropies, soft_cross_entropies
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.page import Table
from eagleray.tasks.registration import register_task

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Multiclass"]

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

    # --- evaluation ---

    def constant_prediction(self, targets: Tensor) -> tuple[str, Tensor] | None:
        """Predict the most frequent label, with the frequencies as probabilities."""
        import torch

        counts = torch.bincount(targets.cpu(), minlength=len(self.labels)).float()
        label = self.labels[int(counts.argmax())]
        return f"always predicting the most frequent label {label!r}", counts / counts.sum()

    @property
    def headline_names(self) -> tuple[str, ...]:
        """Accuracy, F1 and calibration; top-5 accuracy where there are more than 5 labels."""
        top5 = ("top5_accuracy",) if len(self.labels) >= _MIN_LABELS_FOR_TOP5 else ()
        return ("accuracy", "f1_macro", *top5, "log_loss", "ece")

    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Return the names of metrics of all labels, then of each label."""
        seen, ranked = self._measurable(targets)
        top5 = ("top5_accuracy", "top5_error") if "top5_accuracy" in self.headline_names else ()
        pooled = [f"{name}_{average}" for name in COUNTED for average in _AVERAGES if seen]
        pooled += [f"{name}_macro" for name in RANKED if ranked]
        of_labels = [f"{name}[{label}]" for name in COUNTED for label in seen]
        of_labels += [f"{name}[{label}]" for name in RANKED for label in ranked]
        return ("accuracy", "error", *top5, *pooled, "log_loss", "ece", *of_labels)

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
        """Return the most common pairs of a true label and another prediction."""
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
        return [Table("Most confused classes", headings, rows)]
