"""How good answers are, in figures by name; a metric of one label is written `recall[defect]`.

    measure          all that there is to know of one set of answers
    metric_names     what `measure` will give, before there are answers
    headline_names   the few that say it in short, the one that chooses the best epoch first

A label that no image of the data has is in no macro average and has no metrics of its own. Scores
of a label are ranked (average precision, area under the ROC curve) where some images have it and
others do not. Where a share is of nothing at all, it is 0.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    max_error,
    mean_absolute_error,
    mean_absolute_percentage_error,
    median_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from torch import Tensor

from eagleray.evaluation.calibration import reliability
from eagleray.evaluation.outputs import (
    LabelCounts,
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

__all__ = ["headline_names", "measure", "metric_names"]

_COUNTED = ("precision", "recall", "f1")
_RANKED = ("average_precision", "roc_auc")
_MIN_FOR_TOP5 = 6


# --- names ------------------------------------------------------------------------------------


def metric_names(task: Task, targets: Tensor | None = None) -> tuple[str, ...]:
    """Return what `measure` gives, in its order.

    Args:
        task: What the model answers.
        targets: Encoded targets (N, …) of the data; None for data in which every label is true of
            some images and not of others.
    """
    if isinstance(task, Regression):
        return _regression_names(task, targets)
    seen, ranked = _measurable(task, targets)
    of_labels = [f"{name}[{label}]" for name in _COUNTED for label in seen]
    if isinstance(task, Binary):
        own = [*_COUNTED] if task.labels[1] in seen else []
        own += ["specificity"] if task.labels[0] in seen else []
        own += _RANKED if ranked else ()
        return ("accuracy", *own, "log_loss", "ece", *of_labels)
    of_labels += [f"{name}[{label}]" for name in _RANKED for label in ranked]
    averages = (
        ("macro", "micro") if isinstance(task, Multilabel) else ("macro", "micro", "weighted")
    )
    pooled = [f"{name}_{average}" for name in _COUNTED for average in averages if seen]
    pooled += [f"{name}_macro" for name in _RANKED if ranked]
    if isinstance(task, Multilabel):
        return ("accuracy", "hamming_loss", *pooled, "ece", *of_labels)
    top5 = ("top5_accuracy", "top5_error") if len(task.labels) >= _MIN_FOR_TOP5 else ()
    return ("accuracy", "error", *top5, *pooled, "log_loss", "ece", *of_labels)


def _measurable(task: Task, targets: Tensor | None) -> tuple[list[str], list[str]]:
    """Return the labels that are true of an image, and those that are also untrue of another."""
    if targets is None:
        return list(task.labels), list(task.labels)
    truth = true_labels(task, targets)
    if isinstance(task, Multilabel):
        counts = truth.sum(axis=0)
    else:
        counts = np.bincount(truth, minlength=len(task.labels))
    pairs = list(zip(task.labels, counts.tolist(), strict=True))
    seen = [label for label, count in pairs if count]
    return seen, [label for label, count in pairs if 0 < count < len(truth)]


def _regression_names(task: Regression, targets: Tensor | None) -> tuple[str, ...]:
    truth = np.asarray([1.0, 2.0]) if targets is None else true_values(task, targets)
    errors = [f"{kind}_error" for kind in ("mean_absolute", "root_mean_squared", "median_absolute")]
    errors.append("max_error")
    if (truth != 0).all():
        errors.append("mean_absolute_percentage_error")
    if truth.min() == truth.max():  # there is no spread to explain
        return tuple(errors)
    return ("r2", *errors, "pearson")


def headline_names(task: Task) -> tuple[str, ...]:
    """Return the metrics that say in short how good a model is, the most telling first."""
    if isinstance(task, Regression):
        return ("r2", "mean_absolute_error", "root_mean_squared_error")
    if isinstance(task, Binary):
        return ("accuracy", "f1", "precision", "recall", "roc_auc", "log_loss", "ece")
    if isinstance(task, Multilabel):
        return ("f1_macro", "accuracy", "f1_micro", "average_precision_macro", "ece")
    top5 = ("top5_accuracy",) if len(task.labels) >= _MIN_FOR_TOP5 else ()
    return ("accuracy", "f1_macro", *top5, "log_loss", "ece")


# --- figures ----------------------------------------------------------------------------------


def measure(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Compute every metric of the task.

    Args:
        task: What the model answers, with its thresholds.
        outputs: float32 tensor (N, num_labels) of probabilities, or (N, 1) of values, finite.
        targets: Encoded targets (N, …).

    Returns:
        Finite figures by name, those of `metric_names(task, targets)`.
    """
    if isinstance(task, Regression):
        found = _measure_regression(task, outputs, targets)
    else:
        found = _measure_labels(task, outputs, targets)
    return {name: float(found[name]) for name in metric_names(task, targets)}


def _measure_labels(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    answers, truth = answered_labels(task, outputs), true_labels(task, targets)
    counts = count_labels(task, answers, truth)
    found = _of_counts(task, counts) | _of_ranks(task, outputs, targets)
    found["ece"] = reliability(task, outputs, targets).error
    if isinstance(task, Multilabel):
        found["accuracy"] = float((answers == truth).all(axis=1).mean())
        found["hamming_loss"] = float((answers != truth).mean())
        return found
    found["accuracy"] = float((answers == truth).mean())
    found["error"] = 1.0 - found["accuracy"]
    found["log_loss"] = float(log_losses(outputs, truth).mean())
    if isinstance(task, Multiclass):
        found["top5_accuracy"] = float(is_in_top(outputs, truth, 5).mean())
        found["top5_error"] = 1.0 - found["top5_accuracy"]
    return found


def _of_counts(task: Task, counts: LabelCounts) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in _COUNTED:
        values = getattr(counts, name)
        found |= {
            f"{name}[{label}]": float(value)
            for label, value in zip(task.labels, values, strict=True)
        }
        found[f"{name}_macro"] = float(macro(values, counts))
        found[f"{name}_micro"] = float(getattr(counts.pooled, name))
        found[f"{name}_weighted"] = float(values @ counts.true / max(counts.true.sum(), 1))
        if isinstance(task, Binary):
            found[name] = float(values[1])
    if isinstance(task, Binary):
        found["specificity"] = float(counts.recall[0])
    return found


def _of_ranks(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    areas: dict[str, dict[str, float]] = {name: {} for name in _RANKED}
    for column in label_columns(task, outputs, targets):
        if column.is_ranked:
            precision = average_precision_score(column.holds, column.scores)
            areas["average_precision"][column.label] = float(precision)
            areas["roc_auc"][column.label] = float(roc_auc_score(column.holds, column.scores))
    found: dict[str, float] = {}
    for name, by_label in areas.items():
        found |= {f"{name}[{label}]": value for label, value in by_label.items()}
        if by_label:
            average = float(np.mean(list(by_label.values())))
            found[name if isinstance(task, Binary) else f"{name}_macro"] = average
    return found


def _measure_regression(task: Regression, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    values = outputs.cpu().numpy()[:, 0].astype(np.float64)
    truth = true_values(task, targets)
    both_vary = np.ptp(values) > 0 and np.ptp(truth) > 0
    return {
        "r2": r2_score(truth, values) if len(truth) > 1 else 0.0,
        "mean_absolute_error": mean_absolute_error(truth, values),
        "root_mean_squared_error": root_mean_squared_error(truth, values),
        "median_absolute_error": median_absolute_error(truth, values),
        "max_error": max_error(truth, values),
        "mean_absolute_percentage_error": mean_absolute_percentage_error(truth, values),
        # One answer for all images goes along with nothing.
        "pearson": np.corrcoef(truth, values)[0, 1] if both_vary else 0.0,
    }
