"""Regression: one number, which the network predicts in units of the training table's spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat

from eagleray.core.errors import InputError
from eagleray.core.types import HEALTH_TOLERANCE
from eagleray.imaging.geometry import Frame
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
from eagleray.tasks.label_metrics import weighted_mean
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.page import Histogram, Scatter, Section
from eagleray.tasks.registration import register_task
from eagleray.tasks.review import Mistake
from eagleray.tasks.tensors import NamedTensor, TensorSpec, number_tensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Regression", "parse_number"]

Numbers = npt.NDArray[np.float64]

_MAX_POINTS = 5000


@register_task
class Regression(Task):
    """A number; the network predicts it in units of the training table's spread.

    Attributes:
        mean: Mean of the training targets.
        std: Standard deviation of the training targets.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("r2", "mean_absolute_error")
    losses: ClassVar[tuple[str, ...]] = ("mse", "huber", "l1")
    output_names: ClassVar[tuple[str, ...] | None] = ()
    main_member: ClassVar[str] = "value"

    name: Literal["regression"] = "regression"
    mean: FiniteFloat = 0.0
    std: Annotated[FiniteFloat, Field(gt=0.0)] = 1.0

    @classmethod
    def from_labels(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> Self:
        """Take the mean and the spread of the table's numbers."""
        values = _parse_numbers(texts, uris)
        if values.min() == values.max():
            raise InputError("Every label is the same number: there is nothing to learn.")
        with np.errstate(over="ignore"):
            mean, spread = values.mean(), values.std()
        if not np.isfinite(mean + spread):
            raise InputError("The labels are too far apart: their spread is not a finite number.")
        return cls(mean=float(mean), std=float(spread))

    @classmethod
    def labels_in(cls, text: str) -> tuple[str, ...]:
        """Return nothing: a number is not a label."""
        return ()

    @property
    def labels(self) -> tuple[str, ...]:
        """A regression has no labels."""
        return ()

    @property
    def num_outputs(self) -> int:
        """One number."""
        return 1

    def encode(self, text: str) -> float:
        """Return the number in units of the spread."""
        return (parse_number(text) - self.mean) / self.std

    def truth(self, targets: Tensor) -> Numbers:
        """Return encoded targets in the unit of the training table, float64 (N,)."""
        values = targets.cpu().numpy().astype(np.float64) * self.std + self.mean
        # A number that was encoded and decoded differs from itself by rounding, which matters at 0.
        values[np.abs(values) < 1e-6 * self.std] = 0.0
        return np.asarray(values, np.float64)

    # --- training ---

    def image_losses(self, options: LossOptions, texts: Sequence[str]) -> ImageLosses:
        """Return the squared error, the Huber loss or the absolute error, in units of the spread.

        The Huber loss (Huber 1964) is half the squared error up to `huber_delta`.
        """
        from torch.nn import functional

        if options.name == "huber":
            delta = options.huber_delta
            return lambda outputs, targets: functional.huber_loss(
                outputs.squeeze(1), targets, reduction="none", delta=delta
            )
        if options.name == "l1":
            return lambda outputs, targets: (outputs.squeeze(1) - targets).abs()
        return lambda outputs, targets: (outputs.squeeze(1) - targets).square()

    def teacher_losses(self, teacher: Task, temperature: float) -> ImageLosses:
        """Return the squared difference to the teacher's value, in units of this task's spread."""

        def losses(outputs: Tensor, taught: Tensor) -> Tensor:
            values = (teacher.activate(taught) - self.mean) / self.std
            return (outputs - values).square().squeeze(1)

        return losses

    def decide(self, outputs: Tensor) -> Tensor:
        """Return the values (N,)."""
        return outputs[:, 0]

    def training_metrics(self, decisions: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the coefficient of determination and the mean absolute error."""
        from sklearn.metrics import mean_absolute_error, r2_score

        values, truth = decisions.cpu().numpy().astype(np.float64), self.truth(targets)
        return {
            "r2": float(r2_score(truth, values)) if len(truth) > 1 else 0.0,
            "mean_absolute_error": float(mean_absolute_error(truth, values)),
        }

    # --- prediction ---

    def activate(self, outputs: NetworkOutput) -> Tensor:
        """Return values (N, 1) in the unit of the training table."""
        return only_tensor(outputs) * self.std + self.mean

    def postprocess(self, outputs: Outputs, frame: Frame) -> Prediction:
        """Take the value."""
        return Prediction(value=float(outputs[0]))

    def outputs_of(self, prediction: Prediction) -> Outputs:
        """Return the value (1,)."""
        return np.asarray([prediction.value], np.float32)

    @property
    def num_values(self) -> int:
        """One value."""
        return 1

    @property
    def unit(self) -> float:
        """The spread of the training targets."""
        return self.std

    def same_answer(self, prediction: Prediction, other: Prediction) -> bool:
        """Return whether both values differ by no more than a precision may change them."""
        if prediction.value is None or other.value is None:  # the other version has another task
            return False
        largest = HEALTH_TOLERANCE["bfloat16"] * self.unit
        return abs(prediction.value - other.value) <= largest

    def describe(self, prediction: Prediction) -> str | None:
        """Return the value."""
        if prediction.value is None:
            return super().describe(prediction)
        return f"{prediction.value:.6g}"

    # --- evaluation ---

    def constant_prediction(self, targets: Tensor) -> tuple[str, Tensor] | None:
        """Predict the mean."""
        import torch

        mean = float(targets.double().mean()) * self.std + self.mean
        return f"always predicting the mean {mean:.6g}", torch.tensor([mean])

    def settings(self) -> dict[str, str]:
        """Return the mean and the spread by which the network's output is scaled."""
        return {"mean of the training targets": f"{self.mean:.6g}", "spread": f"{self.std:.6g}"}

    @property
    def headline_names(self) -> tuple[str, ...]:
        """The coefficient of determination, and the errors."""
        return ("r2", "mean_absolute_error", "root_mean_squared_error")

    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Return the names of metrics that are defined: none explains a spread of 0."""
        truth = np.asarray([1.0, 2.0]) if targets is None else self.truth(targets)
        kinds = ("mean_absolute", "root_mean_squared", "median_absolute")
        errors = [*(f"{kind}_error" for kind in kinds), "max_error"]
        if (truth != 0).all():
            errors.append("mean_absolute_percentage_error")
        if truth.min() == truth.max():
            return tuple(errors)
        return ("r2", *errors, "pearson")

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute errors, the coefficient of determination, and Pearson's correlation."""
        from sklearn import metrics

        values, truth = outputs.cpu().numpy()[:, 0].astype(np.float64), self.truth(targets)
        both_vary = np.ptp(values) > 0 and np.ptp(truth) > 0
        percentage = metrics.mean_absolute_percentage_error(truth, values)
        found = {
            **self.training_metrics(self.decide(outputs), targets),
            "root_mean_squared_error": metrics.root_mean_squared_error(truth, values),
            "median_absolute_error": metrics.median_absolute_error(truth, values),
            "max_error": metrics.max_error(truth, values),
            "mean_absolute_percentage_error": percentage,
            # A constant prediction correlates with nothing.
            "pearson": np.corrcoef(truth, values)[0, 1] if both_vary else 0.0,
        }
        return {name: float(found[name]) for name in self.measured_names(targets)}

    def weighted_metrics(self, outputs: Tensor, targets: Tensor) -> WeightedMetrics:
        """Resample all headline metrics."""
        truth = self.truth(targets)
        errors = outputs.cpu().numpy()[:, 0].astype(np.float64) - truth
        centred = truth - truth.mean()

        def metrics(weights: Floats) -> dict[str, Floats]:
            squares = weighted_mean(errors**2, weights)
            spread = weighted_mean(centred**2, weights) - weighted_mean(centred, weights) ** 2
            with np.errstate(invalid="ignore", divide="ignore"):
                r2 = np.where(spread > 0, 1 - squares / spread, np.nan)
            return {
                "r2": r2,
                "mean_absolute_error": weighted_mean(np.abs(errors), weights),
                "root_mean_squared_error": np.sqrt(squares),
            }

        return metrics

    def section(self, outputs: Tensor, targets: Tensor, metrics: Mapping[str, float]) -> Section:
        """Return a scatter plot of at most 5,000 images, and a histogram of the errors."""
        truth, values = self.truth(targets), outputs.cpu().numpy()[:, 0].astype(np.float64)
        shown = np.random.default_rng(0).permutation(len(truth))[:_MAX_POINTS]
        counts, edges = np.histogram(values - truth, bins=30)
        points = (truth[shown].tolist(), values[shown].tolist())
        return Section(
            [
                Scatter(*points, "Predicted and true values", "true", "predicted"),
                Histogram(edges.tolist(), counts.tolist(), "Errors", "predicted minus true"),
            ]
        )

    def worst_mistakes(self, outputs: Tensor, targets: Tensor, count: int) -> list[Mistake]:
        """Return the largest errors."""
        truth, values = self.truth(targets), outputs.cpu().numpy()[:, 0].astype(np.float64)
        errors = values - truth
        return [
            Mistake(int(at), f"{truth[at]:.6g}", f"{values[at]:.6g}", error=float(errors[at]))
            for at in np.argsort(-np.abs(errors), kind="stable")[:count]
            if errors[at] != 0
        ]

    # --- results ---

    def tensor_specs(self) -> tuple[TensorSpec, ...]:
        """Return the value."""
        return (TensorSpec("value", "FP32"),)

    def tensors(self, predictions: Sequence[Prediction | None]) -> list[NamedTensor]:
        """Return the value; NaN for a failed image."""
        values: list[Any] = [np.nan if one is None else one.value for one in predictions]
        return [number_tensor("value", values)]


def parse_number(text: str) -> float:
    """Read a regression target.

    Raises:
        InputError: If the text is not a finite number.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"{text!r} is not a number, which a regression needs as its label.")
    return value


def _parse_numbers(texts: Sequence[str], uris: Sequence[str]) -> Numbers:
    values = []
    for row, text in enumerate(texts):
        try:
            values.append(parse_number(text))
        except InputError:
            if not uris:
                raise
            raise InputError(
                f"{text!r}, the label of {uris[row]}, is not a number, which a regression needs."
            ) from None
    return np.asarray(values)
