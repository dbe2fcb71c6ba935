"""Renders the page of an evaluation: metrics with intervals, the task's section, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eagleray.evaluation.bootstrap import Interval
from eagleray.evaluation.evaluate import Evaluation
from eagleray.evaluation.kpi import KpiResult
from eagleray.evaluation.slices import Slice
from eagleray.reports import (
    confusion_matrix,
    curves,
    histogram,
    pictures_with_boxes,
    render_page,
    scatter,
    thumbnails,
)
from eagleray.tasks.page import Box, ConfusionMatrix, Curves, Histogram, Plot, Scatter
from eagleray.tasks.review import Mistake, SuspectedLabel

__all__ = ["render_evaluation"]

_MAX_FAILURES = 20
_NUM_PICTURES = 24
_DRAW: dict[type[Plot], Callable[..., str]] = {
    ConfusionMatrix: confusion_matrix,
    Curves: curves,
    Scatter: scatter,
    Histogram: histogram,
}


def render_evaluation(
    evaluation: Evaluation,
    facts: Mapping[str, object],
    *,
    model_name: str,
    intervals: Mapping[str, Interval],
    kpi_results: Sequence[KpiResult] = (),
    slices: Sequence[Slice] = (),
    warnings: Sequence[str] = (),
) -> bytes:
    """Render the page.

    Args:
        evaluation: The evaluation.
        facts: Facts about the model and the data by name, for the last table.
        model_name: Name of the model for the title.
        intervals: Confidence intervals of the headline metrics.
        kpi_results: Results of the KPIs.
        slices: Metrics of slices of the data.
        warnings: Sentences for the top of the page: why its metrics are no evidence, and more.

    Returns:
        A self-contained HTML file.
    """
    task, outputs, targets = evaluation.task, evaluation.outputs, evaluation.targets
    section = task.section(outputs, targets, evaluation.metrics)
    mistakes = task.worst_mistakes(outputs, targets, _NUM_PICTURES)
    review = task.review_labels(outputs, targets)
    return render_page(
        "evaluation.html.j2",
        title=f"Evaluation of {model_name}",
        subtitle=" · ".join(str(facts[name]) for name in ("data", "measured") if name in facts),
        num_images=evaluation.num_images,
        num_failed=evaluation.num_failed,
        headline=[
            {"name": name, "value": value, "interval": intervals.get(name)}
            for name, value in evaluation.headline.items()
        ],
        kpi_results=kpi_results,
        warnings=warnings,
        plots=[_DRAW[type(plot)](**vars(plot)) for plot in section.plots],
        tables=section.tables,
        slices=_by_column(slices),
        mistakes=_with_pictures(evaluation, mistakes, [one.boxes for one in mistakes]),
        has_boxes=any(one.boxes for one in mistakes),
        suspects=_with_pictures(evaluation, review.suspects[:_NUM_PICTURES]),
        num_suspects=len(review.suspects),
        withheld=review.withheld,
        failures=evaluation.failures[:_MAX_FAILURES],
        metrics={name: value for name, value in evaluation.metrics.items() if "[" not in name},
        facts=facts,
    )


def _by_column(slices: Sequence[Slice]) -> dict[str, list[Slice]]:
    columns: dict[str, list[Slice]] = {}
    for one in slices:
        columns.setdefault(one.column, []).append(one)
    return columns


def _with_pictures(
    evaluation: Evaluation,
    items: Sequence[Mistake | SuspectedLabel],
    boxes: Sequence[Sequence[Box]] = (),
) -> list[dict[str, Any]]:
    uris = [evaluation.uri(item.position) for item in items]
    pictures = pictures_with_boxes(uris, boxes) if any(boxes) else thumbnails(uris)
    return [
        {"item": item, "uri": uri, "picture": picture}
        for item, uri, picture in zip(items, uris, pictures, strict=True)
    ]
