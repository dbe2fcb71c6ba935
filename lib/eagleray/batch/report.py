"""The report of a prediction job: totals that add up, and a self-contained HTML page.

A collector reads every result table once and keeps only counts and a few examples, so that a report
on ten million images needs no more memory than one on a thousand.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eagleray.batch.shard_summary import ShardSummary
from eagleray.batch.timeline import throughput
from eagleray.reports import (
    bar_chart,
    drawn_pictures,
    histogram,
    line,
    render_page,
    thumbnails,
)
from eagleray.tasks.page import Box, Drawing
from eagleray.tasks.segmentation.pixel_task import SHARE_PREFIX

__all__ = [
    "REPORT_COLUMNS",
    "DrawPlots",
    "ReportCollector",
    "Totals",
    "draw_plots",
    "render_report",
]

REPORT_COLUMNS = (
    *("row", "uri", "status", "reason", "message"),
    *("label", "score", "labels", "value", "objects", "exceeds", "mask"),
)
"""Columns of the result table that a report uses, as far as the task has them."""

_EXAMPLES_PER_CLASS = 8
_EXAMPLES_PER_REASON = 3
_NUM_LEAST_CONFIDENT = 20
_MAX_CLASSES_SHOWN = 20
_SCORE_BINS = 20
_MAX_VALUES = 10_000


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts and times of a job.

    Attributes:
        num_rows: Number of inputs.
        num_ok: Number of inputs with a prediction.
        num_failed: Number of inputs that failed.
        seconds: Time during which workers were at work, in all runs.
    """

    num_rows: int
    num_ok: int
    num_failed: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput while workers were at work."""
        return self.num_rows / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class _Example:
    uri: str
    label: str
    score: float | None
    message: str = ""
    drawing: Drawing | None = None


def _example(rows: pa.Table, index: int) -> _Example:
    label, score = rows.column("label")[index].as_py(), rows.column("score")[index].as_py()
    known = score if score is not None and math.isfinite(score) else None
    return _Example(rows.column("uri")[index].as_py(), label or "(none)", known)


def _box(found: Mapping[str, Any]) -> Box:
    return Box(**{name: found[name] for name in ("x", "y", "width", "height", "label", "score")})


def _describe(names: Sequence[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(Counter(names).items()))


@dataclass
class ReportCollector:
    """Counts and examples, gathered from result tables one after the other."""

    labels: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    score_counts: list[int] = field(default_factory=lambda: [0] * _SCORE_BINS)
    values: list[float] = field(default_factory=list)
    counts_objects: bool = False
    has_masks: bool = False
    exceeded: Counter[str] = field(default_factory=Counter)
    _class_examples: dict[str, list[_Example]] = field(default_factory=dict)
    _reason_examples: dict[str, list[_Example]] = field(default_factory=dict)
    _least_confident: list[tuple[float, int, _Example]] = field(default_factory=list)

    def add(self, table: pa.Table) -> None:
        """Add one table of result rows."""
        status = table.column("status").to_numpy()
        self._add_failed(table.filter(pa.array(status == "failed")))
        ok = table.filter(pa.array(status == "ok"))
        if not ok.num_rows:
            return
        if "value" in ok.column_names and ok.column("value").null_count == 0:
            values = ok.column("value").to_numpy()
            room = max(_MAX_VALUES - len(self.values), 0)
            self.values.extend(values[np.isfinite(values)][:room].tolist())
        elif "objects" in ok.column_names:
            self._add_objects(ok)
        elif "mask" in ok.column_names:
            self._add_masks(ok)
        elif "score" in ok.column_names:  # an embedding has neither
            self._add_ok(ok)

    def _add_objects(self, rows: pa.Table) -> None:
        """Count objects, and keep the first few images with each label."""
        self.counts_objects = True
        if "exceeds" in rows.column_names:
            for limits in rows.column("exceeds").to_pylist():
                self.exceeded.update(limits)
        uris = rows.column("uri").to_pylist()
        for uri, objects in zip(uris, rows.column("objects").to_pylist(), strict=True):
            self._add_scores(np.array([one["score"] for one in objects], np.float32))
            names = [one["label"] for one in objects]
            self.labels.update(names)
            example = _Example(
                uri, _describe(names), None, drawing=Drawing(tuple(map(_box, objects)))
            )
            for label in set(names):
                examples = self._class_examples.setdefault(label, [])
                if len(examples) < _EXAMPLES_PER_CLASS // 2:
                    examples.append(example)

    def _add_masks(self, rows: pa.Table) -> None:
        """Count the images with pixels of each label, and keep the first few of each."""
        self.has_masks = True
        for name in rows.column_names:
            if name.startswith(SHARE_PREFIX):
                label, shares = name.removeprefix(SHARE_PREFIX), rows.column(name).to_numpy()
                found = np.flatnonzero(shares > 0).tolist()
                self.labels[label] += len(found)
                examples = self._class_examples.setdefault(label, [])
                for index in found[: max(0, _EXAMPLES_PER_CLASS // 2 - len(examples))]:
                    text = f"{label}: {100 * shares[index]:.1f} % of the pixels"
                    drawing = Drawing(mask=rows.column("mask")[index].as_py())
                    uri = rows.column("uri")[index].as_py()
                    examples.append(_Example(uri, text, None, drawing=drawing))

    def _add_scores(self, scores: npt.NDArray[np.float32]) -> None:
        known = scores[np.isfinite(scores)]  # a network may return NaN, which belongs to no bin
        bins = np.minimum((known * _SCORE_BINS).astype(int), _SCORE_BINS - 1)
        for position, count in enumerate(np.bincount(bins, minlength=_SCORE_BINS)):
            self.score_counts[position] += int(count)

    def _add_ok(self, rows: pa.Table) -> None:
        scores = rows.column("score").to_numpy()
        self._add_scores(scores)
        for index, labels in enumerate(rows.column("labels").to_pylist()):
            for label in labels or ["(none)"]:
                self.labels[label] += 1
                examples = self._class_examples.setdefault(label, [])
                if len(examples) < _EXAMPLES_PER_CLASS:
                    examples.append(_example(rows, index))
        self._add_least_confident(rows, scores)

    def _add_least_confident(self, rows: pa.Table, scores: npt.NDArray[np.float32]) -> None:
        """Keep the lowest scores on a heap: its root is the highest of them, replaced first."""
        numbers = rows.column("row")
        for index in np.argsort(scores, kind="stable")[:_NUM_LEAST_CONFIDENT].tolist():
            key = (-float(scores[index]), -numbers[index].as_py())
            full = len(self._least_confident) == _NUM_LEAST_CONFIDENT
            if np.isnan(scores[index]) or (full and key <= self._least_confident[0][:2]):
                return
            entry = (*key, _example(rows, index))
            if full:
                heapq.heapreplace(self._least_confident, entry)
            else:
                heapq.heappush(self._least_confident, entry)

    def _add_failed(self, rows: pa.Table) -> None:
        for index, reason in enumerate(rows.column("reason").to_pylist()):
            self.reasons[reason] += 1
            examples = self._reason_examples.setdefault(reason, [])
            if len(examples) < _EXAMPLES_PER_REASON:
                message = rows.column("message")[index].as_py()
                uri = rows.column("uri")[index].as_py()
                examples.append(_Example(uri, "", None, message))

    @property
    def least_confident(self) -> list[_Example]:
        """The lowest scores, lowest first."""
        return [example for _, _, example in sorted(self._least_confident, reverse=True)]

    def class_examples(self, label: str) -> list[_Example]:
        """The first few images of a class."""
        return self._class_examples[label]

    def reason_examples(self, reason: str) -> list[_Example]:
        """The first few images that failed for a reason."""
        return self._reason_examples[reason]


DrawPlots = Callable[[ReportCollector, Sequence[ShardSummary]], list[str]]


def draw_plots(collector: ReportCollector, timeline: Sequence[ShardSummary]) -> list[str]:
    """Return the plots of the page as SVG."""
    plots = []
    common = collector.labels.most_common(_MAX_CLASSES_SHOWN)
    if common:
        title = "Objects per class" if collector.counts_objects else "Images per class"
        if len(collector.labels) > len(common):
            title += f" (the {len(common)} most frequent of {len(collector.labels)})"
        names, counts = zip(*common, strict=True)
        plots.append(bar_chart(names, counts, title=title))
    if any(collector.score_counts):
        edges = np.linspace(0, 1, _SCORE_BINS + 1).tolist()
        plots.append(
            histogram(
                edges,
                collector.score_counts,
                title="Confidence",
                label="score of an object"
                if collector.counts_objects
                else "probability of the predicted label",
            )
        )
    if collector.values:
        counts_array, edges_array = np.histogram(collector.values, bins=30)
        plots.append(
            histogram(
                edges_array.tolist(),
                counts_array.tolist(),
                title="Predicted values",
                label="value",
            )
        )
    if collector.reasons:
        names, counts = zip(*collector.reasons.most_common(), strict=True)
        plots.append(bar_chart(names, counts, title="Failures by reason"))
    if len(timeline) > 1:
        seconds, rates = throughput(timeline)
        plots.append(
            line(
                seconds,
                rates,
                title="Throughput",
                x_label="seconds of work",
                y_label="images / s",
            )
        )
    return plots


def render_report(
    collector: ReportCollector,
    totals: Totals,
    timeline: Sequence[ShardSummary],
    plan: Mapping[str, object],
    *,
    model_name: str,
    remarks: Sequence[str] = (),
    draw_plots: DrawPlots = draw_plots,
) -> bytes:
    """Render the page.

    Args:
        collector: Holds all results.
        totals: Counts and times of the job.
        timeline: Summary of every shard.
        plan: Names and values that describe the job.
        model_name: Name of the model for the title.
        remarks: Sentences about decisions made while the inputs were listed.
        draw_plots: Draws the plots.

    Returns:
        A self-contained HTML file.
    """
    common = collector.labels.most_common()
    return render_page(
        "batch.html.j2",
        title=f"{totals.num_rows:,} images through {model_name}",
        subtitle=str(plan.get("finished", "")),
        totals=totals,
        remarks=remarks,
        plots=draw_plots(collector, timeline),
        failures=[
            {
                "reason": reason,
                "count": count,
                "examples": collector.reason_examples(reason),
            }
            for reason, count in collector.reasons.most_common()
        ],
        least_confident=_with_pictures(collector.least_confident),
        classes=[
            {
                "label": label,
                "count": count,
                "examples": _with_pictures(collector.class_examples(label)),
            }
            for label, count in common[:_MAX_CLASSES_SHOWN]
        ],
        is_drawn=collector.counts_objects or collector.has_masks,
        counted="objects" if collector.counts_objects else "images",
        exceeded=collector.exceeded.most_common(),
        num_more_classes=max(0, len(common) - _MAX_CLASSES_SHOWN),
        plan=plan,
    )


def _with_pictures(examples: Sequence[_Example]) -> list[dict[str, Any]]:
    uris = [example.uri for example in examples]
    drawings = [example.drawing for example in examples if example.drawing is not None]
    pictures = drawn_pictures(uris, drawings) if drawings else thumbnails(uris)
    return [
        {"uri": one.uri, "label": one.label, "score": one.score, "picture": picture}
        for one, picture in zip(examples, pictures, strict=True)
    ]
