"""Which jobs run: priority, fair share, age, and who makes room for whom."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from eagleray.scheduling.queue import MAX_PROCESSES, Decision, QueueEntry, Usage, decide

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
LARGE = 1_000_000


def job(name: str, *, age: float = 0.0, **fields: Any) -> QueueEntry:
    """A job that waits, submitted so many seconds ago by its own owner."""
    defaults = {"owner": name, "priority": 0, "created": NOW - timedelta(seconds=age)}
    return QueueEntry(name, **{**defaults, **fields})


def running(name: str, **fields: Any) -> QueueEntry:
    defaults = {"runs": True, "started": NOW - timedelta(minutes=5), "can_yield": True}
    return job(name, **{**defaults, "images_left": LARGE, **fields})


def decided(*entries: QueueEntry, max_running: int = 1, usage: Usage | None = None) -> Decision:
    return decide(entries, usage or Usage(NOW), max_running, NOW)


def test_the_oldest_job_is_admitted_first() -> None:
    decision = decided(job("new", age=1), job("old", age=9))
    assert decision.admitted == ("old",)
    assert decision.waiting == ("old", "new")


def test_priority_goes_before_age() -> None:
    decision = decided(job("old", age=9), job("urgent", priority=5))
    assert decision.admitted == ("urgent",)


def test_who_has_used_less_goes_before_who_waits_longer() -> None:
    usage = Usage(NOW)
    usage.add("ada", NOW, core_seconds=5000)
    usage.add("bob", NOW - timedelta(hours=24), core_seconds=8000)  # a quarter of it counts
    entries = [job("1", owner="ada", age=9), job("2", owner="bob"), job("3", owner="cid")]
    assert decided(*entries, usage=usage).waiting == ("3", "2", "1")


def test_a_gpu_counts_as_many_cores() -> None:
    usage = Usage(NOW)
    usage.add("ada", NOW, core_seconds=100, gpu_seconds=10)
    assert usage.of("ada") == pytest.approx(260)


def test_jobs_without_a_process_keep_their_place_and_are_not_admitted() -> None:
    decision = decided(job("first", age=9, has_process=False), job("second", age=1))
    assert decision.admitted == ("second",)
    assert decision.waiting == ("second", "first")


def test_those_far_behind_wait_without_a_process() -> None:
    entries = [job(f"{number:03}", age=1000 - number) for number in range(MAX_PROCESSES + 5)]
    decision = decided(*entries, running("busy", can_yield=False))
    assert decision.parked == {f"{number:03}" for number in range(MAX_PROCESSES, len(entries))}


def test_a_small_job_has_a_large_one_make_room() -> None:
    decision = decided(running("large"), job("small", images_left=100))
    assert (decision.admitted, decision.asked) == ((), {"large": "small"})


@pytest.mark.parametrize(
    ("large", "waiting"),
    [
        (running("large"), job("unknown size")),
        (running("large"), job("not small", images_left=100_000)),
        (running("large", can_yield=False), job("small", images_left=100)),
        (running("large", images_left=500), job("small", images_left=100)),
        (running("large", started=NOW - timedelta(seconds=3)), job("small", images_left=100)),
        (running("large", priority=1), job("small", images_left=100)),
        (running("large", yields_to="small"), job("small", images_left=100)),
    ],
)
def test_no_job_is_asked_without_need(large: QueueEntry, waiting: QueueEntry) -> None:
    assert decided(large, waiting).asked == {}


def test_a_job_of_lower_priority_makes_room_whatever_the_sizes() -> None:
    entries = [running("low", priority=-1), running("normal"), job("urgent", priority=3)]
    assert decided(*entries, max_running=2).asked == {"low": "urgent"}


def test_a_job_that_made_room_stands_back_until_the_other_has_started() -> None:
    large = replace(running("large"), runs=False, yielded=True, yields_to="small", created=NOW)
    large = replace(large, created=NOW - timedelta(hours=9))
    small = job("small", images_left=100)
    between = job("between", age=500)
    assert decided(large, between, small).admitted == ("small",)
    assert decided(large, replace(small, runs=True), max_running=2).admitted == ("large",)
    gone = decided(large)
    assert gone.admitted == ("large",)


def test_a_request_is_withdrawn_when_nobody_waits_for_it() -> None:
    assert decided(running("large", yields_to="cancelled")).asked == {"large": ""}


entries = st.builds(
    QueueEntry,
    job=st.uuids().map(str),
    owner=st.sampled_from("abc"),
    priority=st.integers(-2, 2),
    created=st.integers(0, 10_000).map(lambda age: NOW - timedelta(seconds=age)),
    runs=st.booleans(),
    has_process=st.booleans(),
    started=st.none() | st.just(NOW - timedelta(minutes=1)),
    images_left=st.none() | st.integers(0, LARGE),
    can_yield=st.booleans(),
    yielded=st.booleans(),
)


@given(st.lists(entries, max_size=40, unique_by=lambda entry: entry.job), st.integers(1, 5))
def test_what_always_holds(jobs: list[QueueEntry], max_running: int) -> None:
    decision = decided(*jobs, max_running=max_running)
    by_name = {entry.job: entry for entry in jobs}
    num_running = sum(entry.runs for entry in jobs)
    assert sorted(decision.waiting) == sorted(entry.job for entry in jobs if not entry.runs)
    assert num_running + len(decision.admitted) <= max(num_running, max_running)
    ready = [entry for entry in jobs if not entry.runs and entry.has_process]
    free = max(0, max_running - num_running)
    assert len(decision.admitted) == min(free, len(ready))
    left = [entry for entry in ready if entry.job not in decision.admitted]
    for admitted in map(by_name.get, decision.admitted):
        assert admitted is not None
        assert all(admitted.priority >= entry.priority for entry in left)
    for asked, beneficiary in decision.asked.items():
        assert by_name[asked].runs
        assert by_name[asked].can_yield
        assert by_name[beneficiary] in left
        assert by_name[asked].priority <= by_name[beneficiary].priority
    assert len(set(decision.asked.values())) == len(decision.asked)


def test_a_job_is_expected_from_the_request_to_make_room_until_it_is_admitted() -> None:
    small = job("small", images_left=20)
    assert decided(running("large"), small).expected == {"small"}
    assert decided(running("large", yields_to="small"), small).expected == {"small"}
    yielded = job("large", yielded=True, yields_to="small", images_left=LARGE)
    decision = decided(yielded, small)
    assert (decision.admitted, decision.expected) == (("small",), frozenset())
    assert decided(running("large"), job("other", images_left=LARGE)).expected == frozenset()
