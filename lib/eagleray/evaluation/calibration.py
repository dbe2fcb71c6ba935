"""Whether probabilities mean what they say, and the one number that mends most of it.

Temperature scaling and the expected calibration error (15 bins of equal width) are those of Guo,
Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017. A temperature
changes no order of scores and no likeliest label; where there are thresholds, choose them after it.

The fit takes targets that are not quite 0 and 1, as Platt does ("Probabilistic Outputs for Support
Vector Machines", 1999): a few images without a mistake are no proof that there never is one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from eagleray.core.errors import InputError
from eagleray.evaluation.outputs import MIN_PROBABILITY, true_labels
from eagleray.tasks.tasks import Binary, Multiclass, Regression, Task

__all__ = ["Reliability", "at_temperature", "fit_temperature", "reliability"]

Floats = npt.NDArray[np.floating[Any]]

NUM_BINS = 15
_LOWEST, _HIGHEST = 0.05, 20.0  # beyond, a sample says no more about the temperature


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted probabilities in bins of equal width, against how often they came true.

    Attributes:
        edges: Of the bins (num_bins + 1,), from 0 to 1; a bin contains its upper edge.
        counts: Probabilities in each (num_bins,).
        confidence: Their mean (num_bins,), NaN in an empty bin.
        frequency: How often they came true (num_bins,), NaN in an empty bin.
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


def reliability(
    task: Task, outputs: Tensor, targets: Tensor, *, num_bins: int = NUM_BINS
) -> Reliability:
    """Compare probabilities with what came true.

    The probabilities are those of the likeliest label for multiclass, of the positive one for
    binary, and of all labels together for multilabel.

    Args:
        task: What the model answers; not a regression.
        outputs: float32 tensor (N, num_labels) of probabilities.
        targets: Encoded targets (N, …).
        num_bins: Of equal width.
    """
    probabilities, came_true = _claims(task, outputs, targets)
    bins = np.clip(np.ceil(probabilities * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, probabilities, minlength=num_bins) / counts
        frequency = np.bincount(bins, came_true, minlength=num_bins) / counts
    return Reliability(np.linspace(0, 1, num_bins + 1), counts, confidence, frequency)


def _claims(
    task: Task, outputs: Tensor, targets: Tensor
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    scores = outputs.cpu().numpy().astype(np.float64)
    truth = true_labels(task, targets)
    if isinstance(task, Multiclass):
        return scores.max(axis=1), scores.argmax(axis=1) == truth
    if isinstance(task, Binary):
        return scores[:, 1], truth == 1
    return scores.ravel(), truth.ravel() == 1


def fit_temperature(task: Task, outputs: Tensor, targets: Tensor) -> float:
    """Find the temperature under which these answers are likeliest.

    Fit it on images that the model has not learned, and that it is not judged by afterwards.

    Args:
        task: What the model answers, with the temperature that `outputs` were made at.
        outputs: float32 tensor (N, num_labels) of probabilities.
        targets: Encoded targets (N, …).

    Returns:
        The temperature that the task should have, between 0.05 and 20 times what it has.

    Raises:
        InputError: The task has no probabilities.
    """
    if isinstance(task, Regression):
        raise InputError("A regression has no probabilities, so there is nothing to calibrate.")
    logits, truth = _logits(task, outputs), _soft_targets(task, targets)
    lowest, highest = math.log(_LOWEST), math.log(_HIGHEST)
    scale = torch.zeros(1, dtype=torch.float64, requires_grad=True)  # log of the temperature
    optimizer = torch.optim.LBFGS([scale], max_iter=100, line_search_fn="strong_wolfe")
    loss_of = (
        functional.cross_entropy
        if isinstance(task, Multiclass)
        else functional.binary_cross_entropy_with_logits
    )

    def step() -> Tensor:
        optimizer.zero_grad()
        scaled = logits / scale.clamp(lowest, highest).exp()
        loss = loss_of(scaled, truth)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(step)  # type: ignore[no-untyped-call]
    return task.temperature * math.exp(min(max(float(scale.detach()), lowest), highest))


def _soft_targets(task: Task, targets: Tensor) -> Tensor:
    """Return the probability of each logit's label, float64, as if one image more were wrong."""
    truth = torch.from_numpy(true_labels(task, targets))
    if isinstance(task, Multiclass):
        truth = functional.one_hot(truth, len(task.labels))
    elif isinstance(task, Binary):
        truth = truth[:, None]
    doubt = 1 / (len(truth) + 2)
    even = 1 / truth.shape[1] if isinstance(task, Multiclass) else 0.5
    return truth.double() * (1 - doubt) + doubt * even


def at_temperature(task: Task, outputs: Tensor, temperature: float) -> Tensor:
    """Return what the outputs of a task would be at another temperature, float32.

    Args:
        task: What the model answers, with the temperature that `outputs` were made at.
        outputs: float32 tensor (N, num_labels) of probabilities.
        temperature: Above 0.
    """
    assert not isinstance(task, Regression)
    other = task.model_copy(update={"temperature": temperature / task.temperature})
    return other.activate(_logits(task, outputs)).float()


def _logits(task: Task, outputs: Tensor) -> Tensor:
    """Recover logits, divided by the task's temperature, from probabilities, as float64."""
    scores = outputs.detach().cpu().double()
    if isinstance(task, Multiclass):  # up to a constant for each image, which softmax forgets
        return scores.clamp(min=torch.finfo(torch.float32).tiny).log()
    positive = scores[:, 1:] if isinstance(task, Binary) else scores
    return positive.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).logit()
