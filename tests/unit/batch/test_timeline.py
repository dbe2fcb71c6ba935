"""The timeline of a job: kept in its output, and the throughput that it shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.batch.shard_summary import ShardSummary
from eagleray.batch.timeline import (
    engines,
    put_timeline,
    read_timeline,
    seconds_of_work,
    throughput,
)
from eagleray.sharded.layout import OutputLayout


def shard(started: float, finished: float, *, ok: int = 16, failed: int = 0) -> ShardSummary:
    return ShardSummary(0, ok, failed, started, finished)


def test_a_timeline_is_kept_in_the_output(tmp_path: Path) -> None:
    layout = OutputLayout(str(tmp_path))
    assert read_timeline(layout) == []
    timeline = [ShardSummary(n, 10, 1, n, n + 1, engine="ab"[n % 2]) for n in range(4)]
    put_timeline(layout, timeline)
    assert read_timeline(layout) == timeline
    assert engines(timeline) == ("a", "b")


def test_seconds_of_work_leave_out_the_time_between_runs() -> None:
    first, second = [shard(100, 110), shard(105, 120)], [shard(90_000, 90_005)]
    assert seconds_of_work(first + second) == 25
    assert seconds_of_work(list(reversed(first + second))) == 25
    assert seconds_of_work([]) == 0


def test_throughput_of_two_nights_shows_two_nights() -> None:
    timeline = [shard(1000 + 2 * n, 1002 + 2 * n, ok=20) for n in range(5)]
    timeline += [shard(90_000 + 2 * n, 90_002 + 2 * n, ok=30, failed=10) for n in range(5)]
    seconds, rates = throughput(timeline)
    assert seconds == pytest.approx([1, 3, 5, 7, 9, 11, 13, 15, 17, 19])
    assert rates == pytest.approx([10] * 5 + [20] * 5)


def test_throughput_adds_up_workers_that_overlap() -> None:
    seconds, rates = throughput([shard(0, 10, ok=100), shard(5, 15, ok=100), shard(10, 15, ok=50)])
    assert seconds == pytest.approx([2.5, 7.5, 12.5])
    assert rates == pytest.approx([10, 20, 20])


times = st.floats(0, 1000).map(lambda seconds: 1.7e9 + seconds)


@given(
    st.lists(
        st.builds(
            lambda started, length, ok: shard(started, started + length, ok=ok),
            times,
            st.one_of(st.just(0.0), st.just(-0.5), st.floats(0, 50)),
            st.integers(1, 512),
        ),
        min_size=1,
        max_size=200,
    )
)
def test_the_images_of_all_spans_are_all_images(timeline: list[ShardSummary]) -> None:
    seconds, rates = throughput(timeline)
    assert len(seconds) == len(rates) == min(len(timeline), 120)
    width = 2 * seconds[0]
    assert np.diff(seconds) == pytest.approx(width)
    assert all(rate >= 0 for rate in rates)
    images = sum(rates) * width
    assert images == pytest.approx(sum(one.num_rows for one in timeline), rel=1e-4)
    longest = max(max(one.finished - one.started, 0) for one in timeline)
    assert seconds_of_work(timeline) >= longest - 1e-6
