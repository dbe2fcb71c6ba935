"""Calibration of probabilities: reliability, and temperature scaling.

Temperature scaling and the expected calibration error (15 bins of equal width) are those of Guo,
Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017. A temperature
changes neither the order of scores nor the most likely label; choose thresholds after it.

The fit takes targets that are not quite 0 and 1, as Platt does ("Probabilistic Outputs for Support
Vector Machines", 1999): a few images without a mistake do not prove that there never is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "NUM_BINS",
    "Reliability",
    "fit_temperature",
    "measure_reliability",
    "temperature_warnings",
]

Floats = npt.NDArray[np.floating[Any]]

NUM_BINS = 15
_LOWEST, _HIGHEST = 0.05, 20.0  # beyond, a sample says no more about the temperature
_AT_LIMIT = 1e-3  # relative distance from a limit that counts as reaching it


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted probabilities in bins of equal width, against how often they came true.

    Attributes:
        edges: Edges of the bins (num_bins + 1,), from 0 to 1; a bin contains its upper edge.
        counts: Number of probabilities in each bin (num_bins,).
        confidence: Their mean (num_bins,), NaN in an empty bin.
        frequency: Share of them that came true (num_bins,), NaN in an empty bin.
    """

    edges: Floats
    counts: npt.NDArray[np.int64]
    confidence: Floats
    frequency: Floats

    @property
    def error(self) -> float:
        """The expected calibration error: mean distance of both, weighted by the counts."""
        full = self.counts > 0
        gaps = np.abs(self.confidence[full] - self.frequency[full])
        return float(gaps @ self.counts[full] / self.counts.sum())


def measure_reliability(
    probabilities: Floats, came_true: npt.NDArray[np.bool_], num_bins: int = NUM_BINS
) -> Reliability:
    """Compare probabilities (N,) with what came true (N,)."""
    bins = np.clip(np.ceil(probabilities * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, probabilities, minlength=num_bins) / counts
        frequency = np.bincount(bins, came_true, minlength=num_bins) / counts
    return Reliability(np.linspace(0, 1, num_bins + 1), counts, confidence, frequency)


def fit_temperature(
    logits: Tensor, truth: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor], *, chance: float
) -> float:
    """Return the temperature that minimises a loss, from 0.05 to 20.

    Args:
        logits: float64 tensor (N, num_outputs).
        truth: 1 where an output's label is true, else 0 (N, num_outputs).
        loss_of: Returns the mean loss of logits and probabilities.
        chance: Probability of an output's label by chance.
    """
    import torch

    doubt = 1 / (len(truth) + 2)
    soft = truth.double() * (1 - doubt) + doubt * chance
    lowest, highest = math.log(_LOWEST), math.log(_HIGHEST)
    scale = torch.zeros(1, dtype=torch.float64, requires_grad=True)  # log of the temperature
    optimizer = torch.optim.LBFGS([scale], max_iter=100, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(logits / scale.clamp(lowest, highest).exp(), soft)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(step)  # type: ignore[no-untyped-call]
    return math.exp(min(max(float(scale.detach()), lowest), highest))


def temperature_warnings(temperature: float) -> tuple[str, ...]:
    """Return a sentence on a temperature that `fit_temperature` was stopped at; else nothing."""
    if temperature >= _HIGHEST * (1 - _AT_LIMIT):
        return (
            f"The temperature is {temperature:.3g}, the highest that is fitted: the probabilities "
            "have little to do with how often the model is right on the validation split. Train "
            "longer or with another learning rate before you rely on them.",
        )
    if temperature <= _LOWEST * (1 + _AT_LIMIT):
        return (
            f"The temperature is {temperature:.3g}, the lowest that is fitted: on the validation "
            "split the model is right far more often than its probabilities say. Check them on "
            "more images before you rely on them.",
        )
    return ()
