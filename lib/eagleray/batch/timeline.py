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
_Floats = npt.NDArray[np.float64]
_Function = Callable[[_Floats], _Floats]


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
    batches = pq.read_table(pa.BufferReader(content)).to_batches(max_chunksize=10_000)
    return [ShardSummary(**record) for batch in batches for record in batch.to_pylist()]


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
    starts = worked(_column(timeline, "started"))
    ends = worked(_column(timeline, "finished"))
    ends = np.maximum(ends, starts + 1e-3)  # clocks are coarse, and may be put back
    rates = _column(timeline, "num_rows") / (ends - starts)
    edges = np.linspace(0, ends.max(), min(_MAX_POINTS, len(timeline)) + 1)
    done = _integral_of_steps(starts, ends, rates)(edges)
    middles = (edges[:-1] + edges[1:]) / 2
    return middles.tolist(), (np.diff(done) / np.diff(edges)).tolist()


def _integral_of_steps(starts: _Floats, ends: _Floats, heights: _Floats) -> _Function:
    """Return the integral, up to a moment, of a sum of steps: heights between starts and ends."""
    moments = np.concatenate([starts, ends])
    order = np.argsort(moments, kind="stable")
    moments = moments[order]
    slopes = np.cumsum(np.concatenate([heights, -heights])[order])
    areas = np.cumsum(np.maximum(slopes[:-1], 0) * np.diff(moments))  # rounding may go below 0
    return lambda moment: np.interp(moment, moments, np.concatenate([[0.0], areas]))


def _column(timeline: Sequence[ShardSummary], name: str) -> _Floats:
    return np.fromiter((getattr(shard, name) for shard in timeline), np.float64, len(timeline))


def _worked_before(timeline: Sequence[ShardSummary]) -> _Function:
    """Return the function from a moment to the seconds of work before it."""
    starts, ends = _column(timeline, "started"), _column(timeline, "finished")
    order = np.lexsort((ends, starts))
    starts = starts[order]
    ends = np.maximum.accumulate(np.maximum(starts, ends[order]))
    is_first = np.concatenate([[True], starts[1:] > ends[:-1]])  # of a span of work
    firsts = np.flatnonzero(is_first)
    spans = np.stack([starts[firsts], ends[np.append(firsts[1:] - 1, len(ends) - 1)]], axis=1)
    worked = np.cumsum(spans[:, 1] - spans[:, 0])
    values = np.stack([worked - (spans[:, 1] - spans[:, 0]), worked], axis=1)
    return lambda moment: np.interp(moment, spans.ravel(), values.ravel())
