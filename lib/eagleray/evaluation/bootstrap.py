"""Confidence intervals of metrics, and of their differences: percentiles of resampled images.

Each resample draws as many images as there are, with replacement, and the metrics are computed
anew (Efron, "Bootstrap Methods", 1979). A resample is a vector of weights of the images. Two models
are compared on the same resamples (paired bootstrap), as most of the variation of their metrics is
that of the images, which both share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eagleray.tasks import Task
from eagleray.tasks.base import WeightedMetrics

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Difference", "Interval", "Measured", "bootstrap", "paired_bootstrap"]

Floats = npt.NDArray[np.floating[Any]]

_MAX_WEIGHTS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval of a metric."""

    low: float
    high: float


def bootstrap(
    task: Task,
    outputs: Tensor,
    targets: Tensor,
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the interval of each metric that the task resamples.

    Args:
        task: The task.
        outputs: Activated outputs (N, …), float32.
        targets: Encoded targets (N, …).
        num_resamples: Number of resamples.
        level: Share of the resamples that an interval holds.
        seed: Seed of the draws.
    """
    metrics = task.weighted_metrics(outputs, targets)
    drawn = _resample(metrics, len(targets), num_resamples, seed)
    return {name: _interval(values, level) for name, values in drawn.items() if len(values)}


@dataclass(frozen=True, slots=True)
class Measured:
    """A model's task with its activated outputs (N, …) and the encoded targets (N, …)."""

    task: Task
    outputs: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of a metric between two models on the same images.

    Attributes:
        value: Metric of the second model minus that of the first one.
        interval: 95 % confidence interval; None if the metric is not resampled.
        p_value: Two-sided p-value of there being no difference, at least 1/(resamples + 1).
    """

    value: float
    interval: Interval | None = None
    p_value: float | None = None


def paired_bootstrap(
    first: Measured,
    second: Measured,
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Return the differences of the metrics that both tasks resample.

    The p-value is twice the smaller share of the resamples in which the difference is at most 0, or
    at least 0, where the observed data count as one of them (Davison and Hinkley, "Bootstrap
    Methods and their Application", 1997, section 4.2).

    Args:
        first: One model.
        second: The other; its row i is of the same image as that of the first one.
        num_resamples: Number of resamples.
        level: Share of the resamples that an interval holds.
        seed: Seed of the draws.
    """
    one, other = (
        side.task.weighted_metrics(side.outputs, side.targets) for side in (first, second)
    )

    def differences(weights: Floats) -> dict[str, Floats]:
        base, found = one(weights), other(weights)
        return {name: found[name] - base[name] for name in base if name in found}

    num_images = len(first.targets)
    observed = differences(np.ones((1, num_images), np.float32))
    drawn = _resample(differences, num_images, num_resamples, seed)
    return {
        name: Difference(float(observed[name][0]), _interval(values, level), _p_value(values))
        for name, values in drawn.items()
        if len(values) and np.isfinite(observed[name][0])
    }


def _resample(
    metrics: WeightedMetrics, num_images: int, num_resamples: int, seed: int
) -> dict[str, Floats]:
    """Return the finite values of each metric; a resample may lack what a metric needs."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _MAX_WEIGHTS_AT_ONCE // num_images)
    drawn: dict[str, list[Floats]] = {}
    for start in range(0, num_resamples, at_once):
        count = min(at_once, num_resamples - start)
        for name, values in metrics(_draw(generator, count, num_images)).items():
            drawn.setdefault(name, []).append(values)
    joined = {name: np.concatenate(parts) for name, parts in drawn.items()}
    return {name: values[np.isfinite(values)] for name, values in joined.items()}


def _interval(values: Floats, level: float) -> Interval:
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(low), float(high))


def _p_value(differences: Floats) -> float:
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    return min(1.0, 2 * float(1 + smaller) / (1 + len(differences)))


def _draw(generator: np.random.Generator, count: int, num_images: int) -> Floats:
    """Return how often each image is drawn in each resample, float32 (count, num_images)."""
    drawn = generator.integers(0, num_images, (count, num_images))
    drawn += np.arange(count)[:, None] * num_images
    weights = np.bincount(drawn.ravel(), minlength=count * num_images)
    return weights.reshape(count, num_images).astype(np.float32)
