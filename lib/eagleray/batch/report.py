"""The report of a batch job: totals that reconcile, and a page to look at.

A collector sees every result table once and keeps only counts and a few examples, so that a report
on ten million images needs no more memory than one on a thousand.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from eagleray.pages import histogram, horizontal_bars, line, render_page, thumbnail

__all__ = ["ReportCollector", "Totals", "render_report"]

_EXAMPLES_PER_CLASS = 8
_EXAMPLES_PER_REASON = 3
_NUM_LEAST_CONFIDENT = 20
_MOST_CLASSES_SHOWN = 20
_SCORE_BINS = 20
_MOST_POINTS = 200
_MOST_VALUES = 10_000


@dataclass(frozen=True, slots=True)
class Totals:
    """The job in figures.

    Attributes:
        num_rows: Inputs.
        num_ok: Inputs with a prediction.
        num_failed: Inputs with a reason.
        seconds: From the start of the work to the committed output.
        first_result_seconds: From the start of the work to the first finished shard.
    """

    num_rows: int
    num_ok: int
    num_failed: int
    seconds: float
    first_result_seconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput over the whole job."""
        return self.num_rows / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class _Example:
    uri: str
    label: str
    score: float | None
    message: str = ""


@dataclass
class ReportCollector:
    """Counts and examples, gathered from result tables one after the other."""

    labels: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    score_counts: list[int] = field(default_factory=lambda: [0] * _SCORE_BINS)
    values: list[float] = field(default_factory=list)
    _class_examples: dict[str, list[_Example]] = field(default_factory=dict)
    _reason_examples: dict[str, list[_Example]] = field(default_factory=dict)
    _least_confident: list[tuple[float, int, _Example]] = field(default_factory=list)

    def add(self, table: pa.Table) -> None:
        """Take in one table of result rows."""
        columns = ("row", "uri", "status", "reason", "message", "label", "labels", "score", "value")
        for record in table.select(columns).to_pylist():
            if record["status"] == "ok":
                self._add_ok(record)
            else:
                self._add_failed(record)

    def _add_ok(self, record: Mapping[str, Any]) -> None:
        if record["value"] is not None:
            if len(self.values) < _MOST_VALUES:
                self.values.append(record["value"])
            return
        score = record["score"]
        self.score_counts[min(int(score * _SCORE_BINS), _SCORE_BINS - 1)] += 1
        example = _Example(record["uri"], record["label"] or "(none)", score)
        for label in record["labels"] or ["(none)"]:
            self.labels[label] += 1
            examples = self._class_examples.setdefault(label, [])
            if len(examples) < _EXAMPLES_PER_CLASS:
                examples.append(example)
        # A heap of the lowest scores: its root is the highest of them, the first to be replaced.
        entry = (-score, -record["row"], example)
        if len(self._least_confident) < _NUM_LEAST_CONFIDENT:
            heapq.heappush(self._least_confident, entry)
        else:
            heapq.heappushpop(self._least_confident, entry)

    def _add_failed(self, record: Mapping[str, Any]) -> None:
        reason = record["reason"]
        self.reasons[reason] += 1
        examples = self._reason_examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES_PER_REASON:
            examples.append(_Example(record["uri"], "", None, record["message"]))

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


def render_report(
    collector: ReportCollector,
    totals: Totals,
    timeline: Sequence[tuple[float, int]],
    plan: Mapping[str, object],
    *,
    model_name: str,
) -> bytes:
    """Make the page.

    Args:
        collector: After all results were added.
        totals: Of the job.
        timeline: (seconds since the start, images finished so far), in order of time.
        plan: What was run, in the words of its reader.
        model_name: For the title.

    Returns:
        A self-contained HTML file.
    """
    common = collector.labels.most_common()
    return render_page(
        "batch.html.j2",
        title=f"{totals.num_rows:,} images through {model_name}",
        subtitle=str(plan.get("finished", "")),
        totals=totals,
        plots=_plots(collector, timeline),
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
            for label, count in common[:_MOST_CLASSES_SHOWN]
        ],
        num_more_classes=max(0, len(common) - _MOST_CLASSES_SHOWN),
        plan=plan,
    )


def _plots(collector: ReportCollector, timeline: Sequence[tuple[float, int]]) -> list[str]:
    plots = []
    common = collector.labels.most_common(_MOST_CLASSES_SHOWN)
    if common:
        title = "Images for each class"
        if len(collector.labels) > len(common):
            title += f" (the {len(common)} commonest of {len(collector.labels)})"
        names, counts = zip(*common, strict=True)
        plots.append(horizontal_bars(names, counts, title=title))
        edges = np.linspace(0, 1, _SCORE_BINS + 1).tolist()
        plots.append(
            histogram(
                edges, collector.score_counts, title="Confidence", label="probability of the answer"
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
        plots.append(horizontal_bars(names, counts, title="Failures by reason"))
    if len(timeline) > 1:
        step = -(-len(timeline) // _MOST_POINTS)
        points = [*timeline[::step], timeline[-1]]
        plots.append(
            line(
                [seconds for seconds, _ in points],
                [count for _, count in points],
                title="Progress",
                x_label="seconds",
                y_label="images finished",
            )
        )
    return plots


def _with_pictures(examples: Iterable[_Example]) -> list[dict[str, Any]]:
    return [
        {
            "uri": example.uri,
            "label": example.label,
            "score": example.score,
            "picture": thumbnail(example.uri),
        }
        for example in examples
    ]
