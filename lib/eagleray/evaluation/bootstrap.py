"""How sure the figures are: percentile intervals from resampled images.

Each resample draws as many images as there are, with replacement, and the figures are computed
anew (Efron, "Bootstrap Methods", 1979). All are sums over images, except the area under the ROC
curve, so that a resample is a vector of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from eagleray.evaluation.outputs import (
    LabelColumn,
    answered_labels,
    count_labels,
    is_in_top,
    label_columns,
    log_losses,
    macro,
    true_labels,
    true_values,
)
from eagleray.tasks.tasks import Binary, Multiclass, Multilabel, Regression, Task

__all__ = ["Interval", "bootstrap", "weighted_figures"]

Floats = npt.NDArray[np.floating[Any]]
Figures = Callable[[Floats], dict[str, Floats]]

_MAX_WEIGHTS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a figure would lie, most of the time, on other images of the same kind."""

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
    """Return the interval of each figure of `weighted_figures`.

    Args:
        task: What the model answers.
        outputs: float32 tensor (N, num_labels) of probabilities, or (N, 1) of values.
        targets: Encoded targets (N, …).
        num_resamples: How often to draw.
        level: Share of the resamples that an interval holds.
        seed: Of the draws.
    """
    figures = weighted_figures(task, outputs, targets)
    generator = np.random.default_rng(seed)
    num_images = len(targets)
    at_once = max(1, _MAX_WEIGHTS_AT_ONCE // num_images)
    drawn: dict[str, list[Floats]] = {}
    for start in range(0, num_resamples, at_once):
        count = min(at_once, num_resamples - start)
        for name, values in figures(_draw(generator, count, num_images)).items():
            drawn.setdefault(name, []).append(values)
    shares = [50 * (1 - level), 50 * (1 + level)]
    intervals = {}
    for name, parts in drawn.items():
        values = np.concatenate(parts)
        known = values[np.isfinite(values)]  # a resample may lack what a figure needs
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


def weighted_figures(task: Task, outputs: Tensor, targets: Tensor) -> Figures:
    """Return the function from weights of images (R, N) to figures by name, each (R,).

    The figures are those headline metrics that the weights of the images determine cheaply; one
    that is not defined for some weights is NaN there.
    """
    if isinstance(task, Regression):
        return _regression(task, outputs, targets)
    if isinstance(task, Multilabel):
        return _multilabel(task, outputs, targets)
    return _one_label(task, outputs, targets)


def _one_label(task: Binary | Multiclass, outputs: Tensor, targets: Tensor) -> Figures:
    answers, truth = answered_labels(task, outputs), true_labels(task, targets)
    means = {"accuracy": answers == truth, "log_loss": log_losses(outputs, truth)}
    if isinstance(task, Multiclass) and len(task.labels) > 5:
        means["top5_accuracy"] = is_in_top(outputs, truth, 5)
    column = next(label_columns(task, outputs, targets))

    def figures(weights: Floats) -> dict[str, Floats]:
        found = {name: _mean(values, weights) for name, values in means.items()}
        counts = count_labels(task, answers, truth, weights)
        if isinstance(task, Multiclass):
            found["f1_macro"] = macro(counts.f1, counts)
            return found
        for name in ("precision", "recall", "f1"):
            value = getattr(counts, name)[..., 1]
            found[name] = np.where(counts.true[..., 1] > 0, value, np.nan)
        found["roc_auc"] = _roc_auc(column, weights)
        return found

    return figures


def _multilabel(task: Multilabel, outputs: Tensor, targets: Tensor) -> Figures:
    answers, truth = answered_labels(task, outputs), true_labels(task, targets)
    exact = (answers == truth).all(axis=1)

    def figures(weights: Floats) -> dict[str, Floats]:
        counts = count_labels(task, answers, truth, weights)
        pooled = counts.pooled
        return {
            "f1_macro": macro(counts.f1, counts),
            "accuracy": _mean(exact, weights),
            "f1_micro": np.where(pooled.true > 0, pooled.f1, np.nan),
        }

    return figures


def _regression(task: Regression, outputs: Tensor, targets: Tensor) -> Figures:
    truth = true_values(task, targets)
    errors = outputs.cpu().numpy()[:, 0].astype(np.float64) - truth
    centred = truth - truth.mean()

    def figures(weights: Floats) -> dict[str, Floats]:
        squares = _mean(errors**2, weights)
        spread = _mean(centred**2, weights) - _mean(centred, weights) ** 2
        with np.errstate(invalid="ignore", divide="ignore"):
            r2 = np.where(spread > 0, 1 - squares / spread, np.nan)
        return {
            "r2": r2,
            "mean_absolute_error": _mean(np.abs(errors), weights),
            "root_mean_squared_error": np.sqrt(squares),
        }

    return figures


def _mean(values: npt.NDArray[Any], weights: Floats) -> Floats:
    return np.asarray(weights @ values.astype(np.float64) / weights.sum(axis=-1))


def _roc_auc(column: LabelColumn, weights: Floats) -> Floats:
    """Return the share of pairs of an image with the label and one without in the right order."""
    order = np.argsort(column.scores, kind="stable")
    scores = column.scores[order]
    starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    sorted_weights = weights[..., order].astype(np.float64)
    with_label = np.add.reduceat(sorted_weights * column.holds[order], starts, axis=-1)
    without = np.add.reduceat(sorted_weights * ~column.holds[order], starts, axis=-1)
    below = np.cumsum(without, axis=-1) - without / 2  # one of two equals is half in order
    pairs = with_label.sum(axis=-1) * without.sum(axis=-1)
    right = (with_label * below).sum(axis=-1)
    return np.asarray(np.divide(right, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0))
