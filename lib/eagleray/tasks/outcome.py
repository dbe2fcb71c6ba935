"""What comes back for an input: a prediction, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import BadImageError, Reason

__all__ = ["Failure", "Outcome", "Prediction"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer for one image.

    Attributes:
        label: The answer in one word: the likeliest class; for multilabel the likeliest class
            above its threshold, or None when there is none; None for regression.
        score: Probability of `label`; the largest probability where `label` is None. For
            regression, None.
        labels: All classes that hold: one for multiclass, any number for multilabel.
        value: The predicted number of a regression, in the unit of its training table.
        probabilities: float32 array (num_labels,), in the order of the package's labels; empty
            for regression.
    """

    label: str | None
    score: float | None
    labels: tuple[str, ...]
    value: float | None
    probabilities: npt.NDArray[np.float32]

    def top(self, labels: tuple[str, ...], count: int) -> list[tuple[str, float]]:
        """Return the `count` likeliest of `labels` with their probabilities, best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(labels[index], float(self.probabilities[index])) for index in order]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an input has no prediction: a code for machines and a sentence for people."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One input's result. Exactly one of `prediction` and `failure` is set.

    Attributes:
        prediction: The answer, when the input is `ok`.
        failure: The reason, when the input `failed`.
        width: Width of the upright image in pixels, 0 where it is not known.
        height: Height of the upright image in pixels, 0 where it is not known.
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
