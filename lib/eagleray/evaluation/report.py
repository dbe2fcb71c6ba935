"""Renders the page of an evaluation: metrics with intervals, the task's section, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from eagleray.evaluation.bootstrap import Interval
from eagleray.evaluation.drawings import MAX_MISTAKES, DrawnMistake
from eagleray.evaluation.evaluate import Evaluation
from eagleray.evaluation.kpi import KpiResult
from eagleray.evaluation.slices import Slice
from eagleray.reports import (
    confusion_matrix,
    curves,
    drawn_pictures,
    histogram,
    render_page,
    scatter,
    thumbnails,
)
from eagleray.tasks.page import ConfusionMatrix, Curves, Drawing, Histogram, Plot, Scatter
from eagleray.tasks.review import Mistake, SuspectedLabel

__all__ = ["render_evaluation"]

_MAX_FAILURES = 20
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
    drawn: Mapping[int, DrawnMistake] = MappingProxyType({}),
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
        drawn: What `draw_mistakes` returns, for tasks of pixels.

    Returns:
        A self-contained HTML file.
    """
    task, outputs, targets = evaluation.task, evaluation.outputs, evaluation.targets
    section = task.section(outputs, targets, evaluation.metrics)
    mistakes = task.worst_mistakes(outputs, targets, MAX_MISTAKES)
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
        mistakes=_mistakes_with_pictures(evaluation, mistakes, drawn),
        has_boxes=any(one.boxes for one in mistakes),
        has_masks=bool(drawn),
        suspects=_with_pictures(evaluation, review.suspects[:MAX_MISTAKES]),
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


def _mistakes_with_pictures(
    evaluation: Evaluation, mistakes: Sequence[Mistake], drawn: Mapping[int, DrawnMistake]
) -> list[dict[str, Any]]:
    """Return mistakes with their pictures: of pixels one of the label and one of the prediction."""
    if not drawn:
        drawings = [Drawing(one.boxes) for one in mistakes]
        has_boxes = any(drawing.boxes for drawing in drawings)
        shown = _with_pictures(evaluation, mistakes, drawings if has_boxes else ())
        return [{**one, "truth": None} for one in shown]
    nothing = DrawnMistake(Drawing(), Drawing())
    both = [drawn.get(one.position, nothing) for one in mistakes]
    predicted = _with_pictures(evaluation, mistakes, [one.predicted for one in both])
    true = drawn_pictures([one["uri"] for one in predicted], [one.true for one in both])
    return [{**one, "truth": truth} for one, truth in zip(predicted, true, strict=True)]


def _with_pictures(
    evaluation: Evaluation,
    items: Sequence[Mistake | SuspectedLabel],
    drawings: Sequence[Drawing] = (),
) -> list[dict[str, Any]]:
    uris = [evaluation.uri(item.position) for item in items]
    pictures = drawn_pictures(uris, drawings) if drawings else thumbnails(uris)
    return [
        {"item": item, "uri": uri, "picture": picture}
        for item, uri, picture in zip(items, uris, pictures, strict=True)
    ]
