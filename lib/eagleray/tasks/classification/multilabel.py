"""Multilabel classification: any number of labels hold, each by its own threshold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from eagleray.core.errors import InputError
from eagleray.core.limits import MAX_LABELS
from eagleray.tasks.base import (
    SCORE_PREFIX,
    Floats,
    ImageLosses,
    LossOptions,
    Outputs,
    Task,
    WeightedMetrics,
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
    require_modest_labels,
)
from eagleray.tasks.classification.losses import binary_cross_entropies, soft_binary_cross_entropies
from eagleray.tasks.label_metrics import (
    COUNTED,
    RANKED,
    LabelColumn,
    count_labels,
    count_metrics,
    macro,
    rank_metrics,
    weighted_mean,
)
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.page import Plot
from eagleray.tasks.registration import register_task
from eagleray.tasks.review import LabelReview, Mistake, SuspectedLabel, contradicted_labels
from eagleray.tasks.thresholds import best_thresholds

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

__all__ = ["LABEL_SEPARATOR", "MAX_LABEL_COLUMNS", "Multilabel", "split_labels"]

LABEL_SEPARATOR = "|"
MAX_LABEL_COLUMNS = 1000
"""Largest number of labels that have a column each in a result table, instead of `top_k`."""

_AVERAGES = ("macro", "micro")
_MAX_WITHHELD = 5  # labels of which the page says why none of their images is suspected


@register_task
class Multilabel(Classification):
    """Any number of labels hold, each by its own threshold."""

    metric_names: ClassVar[tuple[str, ...]] = ("f1_macro", "accuracy")
    losses: ClassVar[tuple[str, ...]] = ("bce", "focal")
    # Chance may put all images of a rare label into one split.
    label_coverage: ClassVar[Literal["all", "train", "none"]] = "train"
    has_many_labels: ClassVar[bool] = True
    main_member: ClassVar[str] = "labels"
    fitted: ClassVar[frozenset[str]] = frozenset({"temperature", "thresholds"})

    name: Literal["multilabel"] = "multilabel"
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=MAX_LABELS, fail_fast=True)]
    thresholds: Annotated[tuple[Probability, ...], Field(max_length=MAX_LABELS, fail_fast=True)]
    temperature: Temperature = 1.0

    @model_validator(mode="after")
    def _require_separable_labels(self) -> Self:
        if len(self.thresholds) != len(self.labels):
            raise ValueError(
                f"thresholds has {len(self.thresholds)} values for {len(self.labels)} labels"
            )
        if any(LABEL_SEPARATOR in label for label in self.labels):
            raise ValueError(f"labels must not contain {LABEL_SEPARATOR!r}, which separates them")
        return self

    @classmethod
    def from_labels(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> Self:
        """Take every label that a row names, in alphabetical order."""
        labels = tuple(sorted({label for text in texts for label in split_labels(text)}))
        require_modest_labels(labels)
        if not labels:
            raise InputError("No row of the table names a label.")
        return cls(labels=labels, thresholds=(0.5,) * len(labels))

    @classmethod
    def labels_in(cls, text: str) -> tuple[str, ...]:
        """Return the labels of `a|b|…`."""
        return tuple(split_labels(text))

    def encode(self, text: str) -> list[float]:
        """Return 1.0 at the place of every label in `a|b|…`; an empty text means none."""
        target = [0.0] * len(self.labels)
        for label in split_labels(text):
            target[label_index(self.labels, label)] = 1.0
        return target

    # --- training ---

    def default_monitor(self, *, is_balanced: bool, chooses_thresholds: bool) -> str:
        """Return macro F1, or average precision, which has no threshold."""
        return "average_precision_macro" if chooses_thresholds else self.metric_names[0]

    def image_losses(self, options: LossOptions, texts: Sequence[str]) -> ImageLosses:
        """Return the binary cross-entropy, the mean over labels, or the focal loss.

        Weights, balanced or explicit, are those of a label's positives.
        """
        import torch

        explicit = explicit_weights(options, self.labels)
        weights = None if explicit is None else torch.tensor(explicit)
        if options.class_weights == "balanced":
            held = (label for text in texts for label in split_labels(text))
            weights = positive_weights(self.labels, held, len(texts))
        return binary_cross_entropies(weights=weights, gamma=focal_exponent(options))

    def teacher_losses(self, teacher: Task, temperature: float) -> ImageLosses:
        """Return the divergence from the teacher's probability of each label."""
        return soft_binary_cross_entropies(temperature)

    def decide(self, outputs: Tensor) -> Tensor:
        """Return whether each label reaches its threshold (N, num_labels), as 0 and 1."""
        import torch

        thresholds = torch.tensor(self.thresholds, device=outputs.device)
        return (outputs >= thresholds).to(torch.uint8)

    def training_metrics(self, decisions: Tensor, targets: Tensor) -> dict[str, float]:
        """Return F1 averaged over labels, and the share of images with all labels right."""
        from sklearn.metrics import accuracy_score

        predicted, truth = decisions.cpu().numpy().astype(np.int64), self.truth(targets)
        found = count_metrics(predicted, truth, self.labels, _AVERAGES)
        return {"accuracy": float(accuracy_score(truth, predicted)), "f1_macro": 0.0, **found}

    # --- prediction ---

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the sigmoid of each logit."""
        return logits.sigmoid()

    def predict_labels(self, probabilities: Outputs) -> Prediction:
        """Take every label from its threshold on; `label` is the most likely of them."""
        holds = [at for at, limit in enumerate(self.thresholds) if probabilities[at] >= limit]
        best = max(holds, key=lambda at: probabilities[at], default=None)
        return Prediction(
            label=None if best is None else self.labels[best],
            score=float(probabilities.max() if best is None else probabilities[best]),
            labels=tuple(self.labels[at] for at in holds),
            value=None,
            probabilities=probabilities,
        )

    # --- evaluation ---

    def constant_prediction(self, targets: Tensor) -> tuple[str, Tensor] | None:
        """Predict the frequency of each label as its probability."""
        return "predicting each label's frequency", targets.float().mean(dim=0).cpu()

    def settings(self) -> dict[str, str]:
        """Return the labels, the threshold of each, and the temperature."""
        thresholds = [
            f"{label} {limit:.4g}"
            for label, limit in zip(self.labels, self.thresholds, strict=True)
        ]
        if len(set(self.thresholds)) == 1:
            thresholds = [f"{self.thresholds[0]:.4g} for all labels"]
        return {**super().settings(), "thresholds": ", ".join(thresholds)}

    @property
    def headline_names(self) -> tuple[str, ...]:
        """F1, the share of images with all labels right, average precision and calibration."""
        return ("f1_macro", "accuracy", "f1_micro", "average_precision_macro", "ece")

    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Return the names of metrics of all labels, then of each label."""
        seen, ranked = self._measurable(targets)
        pooled = [f"{name}_{average}" for name in COUNTED for average in _AVERAGES if seen]
        pooled += [f"{name}_macro" for name in RANKED if ranked]
        of_labels = [f"{name}[{label}]" for name in COUNTED for label in seen]
        of_labels += [f"{name}[{label}]" for name in RANKED for label in ranked]
        return ("accuracy", "hamming_loss", *pooled, "ece", *of_labels)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute exact matches, Hamming loss, precision, recall, F1, ranks and calibration."""
        found = self.training_metrics(self.decide(outputs), targets)
        found |= rank_metrics(self.columns(outputs, targets))
        wrong = self.predicted(outputs) != self.truth(targets)
        found["hamming_loss"] = float(wrong.mean())
        found["ece"] = self.reliability(outputs, targets).error
        return {name: found[name] for name in self.measured_names(targets)}

    def weighted_metrics(self, outputs: Tensor, targets: Tensor) -> WeightedMetrics:
        """Resample the headline metrics except for average precision and the calibration error."""
        truth, predicted = self.truth(targets), self.predicted(outputs)
        exact = (predicted == truth).all(axis=1)

        def metrics(weights: Floats) -> dict[str, Floats]:
            counts = count_labels(predicted, truth, len(self.labels), weights)
            pooled = counts.pooled
            return {
                "f1_macro": macro(counts.f1, counts),
                "accuracy": weighted_mean(exact, weights),
                "f1_micro": np.where(pooled.true > 0, pooled.f1, np.nan),
            }

        return metrics

    def columns(self, outputs: Tensor, targets: Tensor) -> list[LabelColumn]:
        """Return each label against its absence."""
        scores, truth = outputs.cpu().numpy(), self.truth(targets)
        return [
            LabelColumn(label, truth[:, index] == 1, scores[:, index])
            for index, label in enumerate(self.labels)
        ]

    def reliability(
        self, outputs: Tensor, targets: Tensor, num_bins: int = NUM_BINS
    ) -> Reliability:
        """Compare the probabilities of all labels together with how often they are true."""
        scores = outputs.cpu().numpy().astype(np.float64)
        return measure_reliability(scores.ravel(), self.truth(targets).ravel() == 1, num_bins)

    def choose_thresholds(self, outputs: Tensor, targets: Tensor, *, goal: str = "f1") -> Self:
        """Return the task with other thresholds."""
        columns = self.columns(outputs, targets)
        return self.model_copy(
            update={"thresholds": best_thresholds(columns, self.thresholds, goal)}
        )

    def _confusion_plots(self, outputs: Tensor, targets: Tensor) -> list[Plot]:
        return []

    def worst_mistakes(self, outputs: Tensor, targets: Tensor, count: int) -> list[Mistake]:
        """Return the most confident wrong decisions on a label."""
        scores, truth, predicted = (
            outputs.cpu().numpy(),
            self.truth(targets),
            self.predicted(outputs),
        )
        rows, columns = np.nonzero(predicted != truth)
        positive = scores[rows, columns]
        confidence = np.where(predicted[rows, columns] == 1, positive, 1 - positive)
        return [
            Mistake(
                int(rows[index]),
                self._one_name(columns[index], truth[rows[index], columns[index]]),
                self._one_name(columns[index], predicted[rows[index], columns[index]]),
                confidence=float(confidence[index]),
            )
            for index in np.argsort(-confidence, kind="stable")[:count]
        ]

    def review_labels(self, outputs: Tensor, targets: Tensor) -> LabelReview:
        """Treat every label as a task of its own: whether it holds."""
        found: list[SuspectedLabel] = []
        withheld: list[str] = []
        for index, column in enumerate(self.columns(outputs, targets)):
            names = (self._one_name(index, 0), self._one_name(index, 1))
            both = np.stack([1 - column.scores, column.scores], axis=1)
            review = contradicted_labels(both, column.holds.astype(np.int64), names)
            found += review.suspects
            if review.withheld:
                withheld.append(f"{self.labels[index]}: {review.withheld}")
        found.sort(key=lambda one: (-one.margin, one.position))
        return LabelReview(tuple(found), " ".join(withheld[:_MAX_WITHHELD]))

    def _one_name(self, index: int, holds: int) -> str:
        return self.labels[index] if holds else f"not {self.labels[index]}"

    # --- results ---

    @cached_property
    def _score_columns(self) -> tuple[str, ...]:
        """Columns with the probability of one label each; none for too many labels."""
        if len(self.labels) > MAX_LABEL_COLUMNS:
            return ()
        return tuple(SCORE_PREFIX + label for label in self.labels)

    def result_fields(self) -> list[pa.Field]:
        """Return a column for the probability of each label, instead of `top_k`."""
        import pyarrow as pa

        fields = super().result_fields()
        if not self._score_columns:
            return fields
        scores = [pa.field(name, pa.float32()) for name in self._score_columns]
        return [*(field for field in fields if field.name != "top_k"), *scores]

    def result_row(self, prediction: Prediction, top_k: int) -> dict[str, Any]:
        """Return the values of `result_fields` for a prediction."""
        if not self._score_columns:
            return super().result_row(prediction, top_k)
        scores: Iterable[Any] = prediction.probabilities
        row = super().result_row(prediction, 0)
        return {**row, **dict(zip(self._score_columns, scores, strict=True))}

    def response(
        self, prediction: Prediction, *, top_k: int, threshold: float | None
    ) -> dict[str, Any]:
        """Return the members of the service's JSON; a threshold replaces those of all labels."""
        members = super().response(prediction, top_k=top_k, threshold=threshold)
        if threshold is not None:
            pairs = zip(self.labels, prediction.probabilities, strict=True)
            members["labels"] = [label for label, score in pairs if score >= threshold]
        return members


def split_labels(text: str) -> list[str]:
    """Split `a|b|c` into its labels."""
    return [label.strip() for label in text.split(LABEL_SEPARATOR) if label.strip()]
