"""Binary classification: one of two labels holds; the second one is the positive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from eagleray.core.errors import InputError
from eagleray.tasks.base import (
    Floats,
    ImageLosses,
    LossOptions,
    NetworkOutput,
    Outputs,
    Task,
    WeightedMetrics,
    only_tensor,
)
from eagleray.tasks.classification.calibration import NUM_BINS, Reliability, measure_reliability
from eagleray.tasks.classification.label_task import (
    Classification,
    Label,
    Probability,
    Temperature,
    explicit_weights,
    focal_exponent,
    label_index,
    positive_weights,
    require_class_names,
)
from eagleray.tasks.classification.losses import binary_cross_entropies, soft_binary_cross_entropies
from eagleray.tasks.label_metrics import (
    COUNTED,
    RANKED,
    LabelColumn,
    count_labels,
    count_metrics,
    log_losses,
    rank_metrics,
    weighted_mean,
    weighted_roc_auc,
)
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.registration import register_task
from eagleray.tasks.thresholds import best_thresholds

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Binary"]


@register_task
class Binary(Classification):
    """One of two labels holds; the second one is the positive."""

    metric_names: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "balanced_accuracy")
    losses: ClassVar[tuple[str, ...]] = ("bce", "focal")
    training_options: ClassVar[frozenset[str]] = frozenset({"class_weights", "cutmix", "sampler"})
    fitted: ClassVar[frozenset[str]] = frozenset({"temperature", "thresholds"})
    has_positive: ClassVar[bool] = True

    name: Literal["binary"] = "binary"
    labels: tuple[Label, Label]
    threshold: Probability = 0.5
    temperature: Temperature = 1.0

    @classmethod
    def from_labels(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> Self:
        """Take the two labels of the table, in alphabetical order."""
        labels = require_class_names(texts, uris)
        if len(labels) != 2:
            raise InputError(
                f"A binary task needs exactly 2 labels, the data have {len(labels)}; "
                "use --task multiclass."
            )
        return cls(labels=(labels[0], labels[1]))

    @property
    def positive(self) -> str:
        """The second label."""
        return self.labels[1]

    def with_positive(self, label: str) -> Self:
        """Return the task with the labels in the order that makes one of them the positive.

        Raises:
            InputError: If it is not one of the labels.
        """
        if label not in self.labels:
            raise InputError(
                f"The positive label {label!r} is not one of the data, which have "
                f"{self.labels[0]!r} and {self.labels[1]!r}; name one of these."
            )
        negative = self.labels[1 - self.labels.index(label)]
        return self.model_copy(update={"labels": (negative, label)})

    @property
    def num_outputs(self) -> int:
        """One logit, of the positive label."""
        return 1

    def encode(self, text: str) -> float:
        """Return 1.0 for the positive label and 0.0 for the other."""
        return float(label_index(self.labels, text))

    # --- training ---

    def default_monitor(self, *, is_balanced: bool, chooses_thresholds: bool) -> str:
        """Return accuracy, the balanced one, or average precision, which has no threshold."""
        if chooses_thresholds:
            return "average_precision"
        return "balanced_accuracy" if is_balanced else self.metric_names[0]

    def image_losses(self, options: LossOptions, texts: Sequence[str]) -> ImageLosses:
        """Return the binary cross-entropy of the logit, or the focal loss."""
        import torch

        gamma = focal_exponent(options)
        explicit = explicit_weights(options, self.labels)
        if explicit is not None:
            negative, positive = explicit
            losses = binary_cross_entropies(
                weights=torch.tensor([positive / negative]), gamma=gamma
            )
            return lambda outputs, targets: negative * losses(outputs, targets)
        weights = None
        if options.class_weights == "balanced":
            weights = positive_weights(self.labels[1:], texts, len(texts))
        return binary_cross_entropies(weights=weights, gamma=gamma)

    def teacher_losses(self, teacher: Task, temperature: float) -> ImageLosses:
        """Return the divergence from the teacher's probability of each label."""
        return soft_binary_cross_entropies(temperature)

    def decide(self, outputs: Tensor) -> Tensor:
        """Return whether the positive label reaches its threshold, as 0 and 1 (N,)."""
        return (outputs[:, 1] >= self.threshold).long()

    def training_metrics(self, decisions: Tensor, targets: Tensor) -> dict[str, float]:
        """Return accuracy, also balanced, and precision, recall and F1 of the positive label."""
        from sklearn.metrics import accuracy_score

        predicted, truth = decisions.cpu().numpy(), self.truth(targets)
        found = count_metrics(predicted, truth, self.labels, ("macro",))
        found["balanced_accuracy"] = found["recall_macro"]
        found |= {name: found[f"{name}[{self.labels[1]}]"] for name in COUNTED}
        return {"accuracy": float(accuracy_score(truth, predicted)), **found}

    # --- prediction ---

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of both labels (N, 2)."""
        import torch

        positive = logits.sigmoid()
        return torch.cat([1 - positive, positive], dim=1)

    def predict_labels(self, probabilities: Outputs) -> Prediction:
        """Take the positive label from its threshold on."""
        best = int(probabilities[1] >= self.threshold)
        label = self.labels[best]
        return Prediction(label, float(probabilities[best]), (label,), None, probabilities)

    def label_evidence(self, outputs: NetworkOutput, label: str) -> Tensor:
        """Return the logit, which is that of the positive label; negated for the other one (N,)."""
        positive = only_tensor(outputs)[:, 0]
        return positive if self.position_of(label) == 1 else -positive

    # --- evaluation ---

    def constant_prediction(self, targets: Tensor) -> tuple[str, Tensor] | None:
        """Predict what the frequency of the positive label gives at the threshold."""
        import torch

        share = float(targets.float().mean())
        label = self.labels[int(share >= self.threshold)]
        return f"always predicting {label!r}", torch.tensor([1 - share, share])

    def settings(self) -> dict[str, str]:
        """Return the labels, the positive one, its threshold and the temperature."""
        positive = {"positive label": self.positive, "threshold": f"{self.threshold:.4g}"}
        return {**super().settings(), **positive}

    @property
    def headline_names(self) -> tuple[str, ...]:
        """Accuracy, the metrics of the positive label, and calibration."""
        return ("accuracy", "f1", "precision", "recall", "roc_auc", "log_loss", "ece")

    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Return the names of metrics of the positive label, then of each label."""
        seen, ranked = self._measurable(targets)
        own = [*COUNTED] if self.labels[1] in seen else []
        own += ["specificity"] if self.labels[0] in seen else []
        own += ["balanced_accuracy"] if len(seen) == 2 else []
        own += RANKED if ranked else ()
        of_labels = [f"{name}[{label}]" for name in COUNTED for label in seen]
        return ("accuracy", *own, "log_loss", "ece", *of_labels)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute accuracy, precision, recall, F1, ranks, log loss and calibration."""
        scores, truth = outputs.cpu().numpy(), self.truth(targets)
        found = self.training_metrics(self.decide(outputs), targets)
        ranks = rank_metrics(self.columns(outputs, targets))
        found |= {name.removesuffix("_macro"): value for name, value in ranks.items()}
        found["specificity"] = found[f"recall[{self.labels[0]}]"]
        found["log_loss"] = float(log_losses(scores, truth).mean())
        found["ece"] = self.reliability(outputs, targets).error
        return {name: found[name] for name in self.measured_names(targets)}

    def weighted_metrics(self, outputs: Tensor, targets: Tensor) -> WeightedMetrics:
        """Resample the headline metrics except for the calibration error."""
        truth, predicted = self.truth(targets), self.predicted(outputs)
        losses = log_losses(outputs.cpu().numpy(), truth)
        (column,) = self.columns(outputs, targets)

        def metrics(weights: Floats) -> dict[str, Floats]:
            counts = count_labels(predicted, truth, 2, weights)
            has_positives = counts.true[..., 1] > 0
            return {
                "accuracy": weighted_mean(predicted == truth, weights),
                "log_loss": weighted_mean(losses, weights),
                **{
                    name: np.where(has_positives, getattr(counts, name)[..., 1], np.nan)
                    for name in COUNTED
                },
                "roc_auc": weighted_roc_auc(column, weights),
            }

        return metrics

    def columns(self, outputs: Tensor, targets: Tensor) -> list[LabelColumn]:
        """Return the positive label against the other."""
        positive = outputs[:, 1].cpu().numpy()
        return [LabelColumn(self.labels[1], self.truth(targets) == 1, positive)]

    def reliability(
        self, outputs: Tensor, targets: Tensor, num_bins: int = NUM_BINS
    ) -> Reliability:
        """Compare the probability of the positive label with how often it is true."""
        positive = outputs[:, 1].cpu().numpy().astype(np.float64)
        return measure_reliability(positive, self.truth(targets) == 1, num_bins)

    def choose_thresholds(self, outputs: Tensor, targets: Tensor, *, goal: str = "f1") -> Self:
        """Return the task with another threshold of the positive label."""
        columns = self.columns(outputs, targets)
        (threshold,) = best_thresholds(columns, (self.threshold,), goal)
        return self.model_copy(update={"threshold": threshold})
