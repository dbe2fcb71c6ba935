"""The timeline of a prediction job: when each shard was worked on, and the throughput over time."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.batch.shard_summary import ShardSummary
from eagleray.io import storage
from eagleray.sharded.layout import OutputLayout

__all__ = ["engines", "put_timeline", "read_timeline", "seconds_of_work", "throughput"]

_MAX_POINTS = 120


def put_timeline(layout: OutputLayout, timeline: Sequence[ShardSummary]) -> None:
    """Put the summaries of all shards into the output."""
    names = ShardSummary.__slots__
    table = pa.table({name: [getattr(shard, name) for shard in timeline] for name in names})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.put_atomic(layout.timeline, buffer.getvalue())


def read_timeline(layout: OutputLayout) -> list[ShardSummary]:
    """Return the summaries of all shards of a committed output; none if they were removed."""
    try:
        content = storage.read_bytes(layout.timeline)
    except FileNotFoundError:
        return []
    records = pq.read_table(pa.BufferReader(content)).to_pylist()
    return [ShardSummary(**record) for record in records]


def engines(timeline: Sequence[ShardSummary]) -> tuple[str, ...]:
    """Return the engines of all shards, each once."""
    return tuple(dict.fromkeys(shard.engine for shard in timeline if shard.engine))


def seconds_of_work(timeline: Sequence[ShardSummary]) -> float:
    """Return the seconds during which at least one worker was at work, in all runs."""
    if not timeline:
        return 0.0
    return float(_worked_before(timeline)(np.array([math.inf]))[0])


def throughput(timeline: Sequence[ShardSummary]) -> tuple[list[float], list[float]]:
    """Return the throughput over time.

    Times between runs are skipped, so that a job of two nights shows two nights. A shard's images
    count evenly over its time.

    Returns:
        Middles of equal spans of work, in seconds, and the images per second of each span.
    """
    worked = _worked_before(timeline)
    starts = worked(np.array([shard.started for shard in timeline]))
    ends = worked(np.array([shard.finished for shard in timeline]))
    ends = np.maximum(ends, starts + 1e-3)  # clocks are coarse, and may be put back
    rates = np.array([shard.num_rows for shard in timeline]) / (ends - starts)
    edges = np.linspace(0, ends.max(), min(_MAX_POINTS, len(timeline)) + 1)
    overlaps = np.minimum(ends[:, None], edges[None, 1:]) - np.maximum(
        starts[:, None], edges[None, :-1]
    )
    images = (rates[:, None] * np.clip(overlaps, 0, None)).sum(axis=0)
    middles = (edges[:-1] + edges[1:]) / 2
    return middles.tolist(), (images / np.diff(edges)).tolist()


def _worked_before(
    timeline: Sequence[ShardSummary],
) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """Return the function from a moment to the seconds of work before it."""
    spans: list[list[float]] = []
    for started, finished in sorted((shard.started, shard.finished) for shard in timeline):
        if spans and started <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], finished)
        else:
            spans.append([started, max(started, finished)])
    moments = np.array(spans).ravel()
    lengths = np.array([finished - started for started, finished in spans])
    ends = np.cumsum(lengths)
    worked = np.stack([ends - lengths, ends], axis=1).ravel()
    return lambda moment: np.interp(moment, moments, worked)
