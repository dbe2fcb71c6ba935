"""The result of one input: a prediction, or the reason of a failure."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import BadImageError, Reason

__all__ = ["Failure", "Outcome", "Prediction"]


def _no_probabilities() -> npt.NDArray[np.float32]:
    return np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model predicts for one image; a task may have a subclass with more fields.

    Attributes:
        label: The prediction in one word: the most likely class; for multilabel the most likely
            class above its threshold, or None if there is none; None for regression.
        score: Probability of `label`; the largest probability where `label` is None. None for
            regression.
        labels: All classes that hold: one for multiclass, any number for multilabel.
        value: The predicted number of a regression, in the unit of its training table.
        probabilities: float32 array (num_labels,), in the order of the package's labels; empty
            for a task without labels.
        outlier_score: Share of the validation images that are less unusual than the image, from 0
            to 1; None for a model without outlier statistics.
    """

    label: str | None = None
    score: float | None = None
    labels: tuple[str, ...] = ()
    value: float | None = None
    probabilities: npt.NDArray[np.float32] = field(default_factory=_no_probabilities)
    outlier_score: float | None = field(default=None, kw_only=True)

    def top(self, labels: tuple[str, ...], count: int) -> list[tuple[str, float]]:
        """Return the `count` most likely of `labels` with their probabilities, best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(labels[index], float(self.probabilities[index])) for index in order]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an input has no prediction: a reason code, and a sentence for people."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One input's result. Exactly one of `prediction` and `failure` is set.

    Attributes:
        prediction: The prediction of an input that is `ok`.
        failure: The reason of an input that `failed`.
        width: Width of the upright image in pixels, 0 if unknown.
        height: Height of the upright image in pixels, 0 if unknown.
    """

    prediction: Prediction | None = None
    failure: Failure | None = None
    width: int = 0
    height: int = 0

    def __post_init__(self) -> None:
        assert (self.prediction is None) != (self.failure is None)

    @property
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return self.prediction is not None

    @classmethod
    def failed(cls, reason: Reason, message: str) -> Outcome:
        """Make the outcome of an input that has no prediction."""
        return cls(failure=Failure(reason, message))

    @classmethod
    def from_error(cls, error: BadImageError) -> Outcome:
        """Make the outcome of an image that cannot be used."""
        return cls.failed(error.reason, error.message)
