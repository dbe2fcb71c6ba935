"""The page of an evaluation: figures with their intervals, where they come from, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eagleray.evaluation.bootstrap import Interval
from eagleray.evaluation.calibration import Reliability, at_temperature, reliability
from eagleray.evaluation.curves import Curve, precision_recall_curves, roc_curves
from eagleray.evaluation.evaluate import Evaluation
from eagleray.evaluation.kpi import Verdict
from eagleray.evaluation.mistakes import (
    Mistake,
    SuspectedLabel,
    suspected_labels,
    worst_mistakes,
)
from eagleray.evaluation.outputs import answered_labels, true_labels, true_values
from eagleray.evaluation.slices import Slice
from eagleray.reports import confusion_matrix, curves, histogram, render_page, scatter, thumbnails
from eagleray.tasks.tasks import Binary, Multiclass, Multilabel, Regression

__all__ = ["render_evaluation"]

_MAX_CLASSES_DRAWN = 50
_MAX_CLASSES_CURVED = 200
_MAX_PAIRS = 15
_MAX_POINTS = 5000
_MAX_FAILURES = 20
_NUM_PICTURES = 24


def render_evaluation(
    evaluation: Evaluation,
    facts: Mapping[str, object],
    *,
    model_name: str,
    intervals: Mapping[str, Interval],
    verdicts: Sequence[Verdict] = (),
    slices: Sequence[Slice] = (),
) -> bytes:
    """Make the page.

    Args:
        evaluation: What was measured.
        facts: About the model and the data, in the words of their reader.
        model_name: For the title.
        intervals: Of the headline figures, as `bootstrap` gives them.
        verdicts: On KPIs.
        slices: Of the data.

    Returns:
        A self-contained HTML file.
    """
    suspects = suspected_labels(evaluation)
    return render_page(
        "evaluation.html.j2",
        title=f"How good {model_name} is",
        subtitle=f"{facts.get('data', '')} · {facts.get('measured', '')}",
        num_images=evaluation.num_images,
        num_failed=evaluation.num_failed,
        headline=[
            {"name": name, "value": value, "interval": intervals.get(name)}
            for name, value in evaluation.headline.items()
        ],
        verdicts=verdicts,
        plots=_plots(evaluation),
        classes=_classes(evaluation),
        pairs=_confused_pairs(evaluation),
        slices=_by_column(slices),
        mistakes=_with_pictures(worst_mistakes(evaluation, _NUM_PICTURES)),
        suspects=_with_pictures(suspects[:_NUM_PICTURES]),
        num_suspects=len(suspects),
        failures=evaluation.failures[:_MAX_FAILURES],
        metrics={name: value for name, value in evaluation.metrics.items() if "[" not in name},
        facts=facts,
    )


# --- tables -----------------------------------------------------------------------------------


def _classes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return a row for each label that an image has, the worst one first."""
    task, metrics = evaluation.task, evaluation.metrics
    if isinstance(task, Regression):
        return []
    truth = true_labels(task, evaluation.targets)
    counts = (
        truth.sum(axis=0)
        if isinstance(task, Multilabel)
        else np.bincount(truth, minlength=len(task.labels))
    )
    names = ("precision", "recall", "f1", "average_precision", "roc_auc")
    rows = [
        {
            "label": label,
            "count": count,
            **{name: metrics.get(f"{name}[{label}]") for name in names},
        }
        for label, count in zip(task.labels, counts.tolist(), strict=True)
        if count
    ]
    return sorted(rows, key=lambda row: row["f1"])


def _confusion_counts(evaluation: Evaluation) -> np.ndarray[Any, np.dtype[np.int64]]:
    task = evaluation.task
    truth = true_labels(task, evaluation.targets)
    answers = answered_labels(task, evaluation.outputs)
    length = len(task.labels)
    cells = np.bincount(truth * length + answers, minlength=length**2)
    return cells.reshape(length, length)


def _confused_pairs(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the commonest pairs of a true label and another answer."""
    if not isinstance(evaluation.task, Multiclass):
        return []
    counts = _confusion_counts(evaluation)
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    labels = evaluation.task.labels
    order = np.argsort(-counts, axis=None, kind="stable")[:_MAX_PAIRS].tolist()
    places = [divmod(cell, len(labels)) for cell in order]
    return [
        {
            "true": labels[row],
            "answered": labels[column],
            "count": int(counts[row, column]),
            "share": float(counts[row, column] / totals[row]),
        }
        for row, column in places
        if counts[row, column]
    ]


def _by_column(slices: Sequence[Slice]) -> dict[str, list[Slice]]:
    columns: dict[str, list[Slice]] = {}
    for one in slices:
        columns.setdefault(one.column, []).append(one)
    return columns


def _with_pictures(items: Sequence[Mistake | SuspectedLabel]) -> list[dict[str, Any]]:
    pictures = thumbnails([item.uri for item in items])
    return [
        {"item": item, "picture": picture} for item, picture in zip(items, pictures, strict=True)
    ]


# --- plots ------------------------------------------------------------------------------------


def _plots(evaluation: Evaluation) -> list[str]:
    task = evaluation.task
    if isinstance(task, Regression):
        return _regression_plots(evaluation, task)
    plots = []
    if not isinstance(task, Multilabel) and len(task.labels) <= _MAX_CLASSES_DRAWN:
        counts = _confusion_counts(evaluation)
        plots.append(confusion_matrix(task.labels, counts, title="What was answered for what"))
    if len(task.labels) <= _MAX_CLASSES_CURVED:
        plots += _curve_plots(evaluation)
    return [*plots, _reliability_plot(evaluation)]


def _curve_plots(evaluation: Evaluation) -> list[str]:
    given = (evaluation.task, evaluation.outputs, evaluation.targets)
    roc, precision = roc_curves(*given), precision_recall_curves(*given)
    if not roc:
        return []
    return [
        curves(
            _as_lines(roc),
            title="ROC",
            x_label="share of false alarms",
            y_label="recall",
            diagonal=True,
        ),
        curves(
            _as_lines(precision),
            title="Precision and recall",
            x_label="recall",
            y_label="precision",
        ),
    ]


def _as_lines(found: Sequence[Curve]) -> list[tuple[str, list[float], list[float]]]:
    return [(curve.name, curve.x.tolist(), curve.y.tolist()) for curve in found]


def _reliability_plot(evaluation: Evaluation) -> str:
    task, outputs, targets = evaluation.task, evaluation.outputs, evaluation.targets
    assert isinstance(task, (Binary, Multiclass, Multilabel))
    now = reliability(task, outputs, targets)
    lines = [_reliability_line("as answered", now)]
    if task.temperature != 1.0:
        before = reliability(task, at_temperature(task, outputs, 1.0), targets)
        lines.append(_reliability_line(f"without the temperature {task.temperature:.3g}", before))
    return curves(
        lines,
        title="Do probabilities mean what they say?",
        x_label="predicted probability",
        y_label="how often it came true",
        diagonal=True,
    )


def _reliability_line(name: str, found: Reliability) -> tuple[str, list[float], list[float]]:
    full = found.counts > 0
    text = f"{name} (calibration error {found.error:.3f})"
    return text, found.confidence[full].tolist(), found.frequency[full].tolist()


def _regression_plots(evaluation: Evaluation, task: Regression) -> list[str]:
    truth = true_values(task, evaluation.targets)
    values = evaluation.outputs.cpu().numpy()[:, 0].astype(np.float64)
    shown = np.random.default_rng(0).permutation(len(truth))[:_MAX_POINTS]
    counts, edges = np.histogram(values - truth, bins=30)
    return [
        scatter(
            truth[shown].tolist(),
            values[shown].tolist(),
            title="Predicted and true values",
            x_label="true",
            y_label="predicted",
        ),
        histogram(
            edges.tolist(),
            counts.tolist(),
            title="Errors",
            label="predicted minus true",
        ),
    ]
