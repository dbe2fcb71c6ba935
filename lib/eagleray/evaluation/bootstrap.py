"""Confidence intervals of metrics: percentile intervals of resampled images.

Each resample draws as many images as there are, with replacement, and the metrics are computed
anew (Efron, "Bootstrap Methods", 1979). A resample is a vector of weights of the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from eagleray.tasks import Task

__all__ = ["Interval", "bootstrap"]

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
    generator = np.random.default_rng(seed)
    num_images = len(targets)
    at_once = max(1, _MAX_WEIGHTS_AT_ONCE // num_images)
    drawn: dict[str, list[Floats]] = {}
    for start in range(0, num_resamples, at_once):
        count = min(at_once, num_resamples - start)
        for name, values in metrics(_draw(generator, count, num_images)).items():
            drawn.setdefault(name, []).append(values)
    shares = [50 * (1 - level), 50 * (1 + level)]
    intervals = {}
    for name, parts in drawn.items():
        values = np.concatenate(parts)
        known = values[np.isfinite(values)]  # a resample may lack what a metric needs
        if len(known):
            low, high = np.percentile(known, shares)
            intervals[name] = Interval(float(low), float(high))
    return intervals


def _draw(generator: np.random.Generator, count: int, num_images: int) -> Floats:
    """Return how often each image is drawn in each resample, float32 (count, num_images)."""
    drawn = generator.integers(0, num_images, (count, num_images))
    drawn += np.arange(count)[:, None] * num_images
    weights = np.bincount(drawn.ravel(), minlength=count * num_images)
    return weights.reshape(count, num_images).astype(np.float32)
