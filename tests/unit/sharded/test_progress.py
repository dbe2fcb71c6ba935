"""How a running job shows itself, and how it hears that it should stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eagleray.batch.shard_summary import ShardSummary
from eagleray.core.errors import InputError
from eagleray.core.job_state import JobState
from eagleray.core.yielding import PERSON, QUEUE, YieldSignal
from eagleray.io import storage
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.progress import JobMonitor, Progress, read_progress


def monitor(
    folder: Path, *, rows: int = 100, done: int = 0, failed: int = 0, **options: Any
) -> JobMonitor:
    return JobMonitor(OutputLayout(str(folder)), "job1", rows, done, failed, **options)


def shard(number: int = 0, *, ok: int = 10, failed: int = 0) -> ShardSummary:
    return ShardSummary(number, ok, failed, 0.0, 1.0)


def shown(folder: Path) -> Progress:
    found = read_progress(OutputLayout(str(folder)))
    assert found is not None
    return found


def test_nothing_done_says_nothing_about_the_time_left(tmp_path: Path) -> None:
    now = monitor(tmp_path, done=40, failed=2).now()
    assert (now.num_rows, now.num_done, now.num_failed) == (100, 40, 2)
    assert now.images_per_second == 0
    assert now.seconds_left is None
    assert (now.host, now.pid) == (socket.gethostname(), os.getpid())


def test_the_rate_counts_this_run_only(tmp_path: Path) -> None:
    clock = 1000.0
    watched = monitor(tmp_path, rows=1000, done=500, clock=lambda: clock)
    clock += 10
    watched.add(shard(ok=90, failed=10))
    now = watched.now()
    assert (now.num_done, now.num_failed) == (600, 10)
    assert now.images_per_second == 10
    assert now.seconds_left == 40


def test_the_rate_is_that_of_the_last_minute(tmp_path: Path) -> None:
    clock = 1000.0
    watched = monitor(tmp_path, rows=10**6, clock=lambda: clock)
    for _ in range(60):  # ten minutes of one image a second, then two of a hundred
        clock += 10
        watched.add(shard(ok=10))
    for _ in range(12):
        clock += 10
        watched.add(shard(ok=1000))
    assert watched.now().images_per_second == pytest.approx(100)
    clock += 10_000
    assert watched.now().images_per_second < 1


def test_a_state_is_shown_at_once(tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    watched.enter(JobState.FAILED, "the storage is full")
    assert shown(tmp_path).state == "failed"
    assert shown(tmp_path).message == "the storage is full"


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"job_id": "x"}', b"\xff"])
def test_no_sign_of_life_is_none(tmp_path: Path, content: bytes | None) -> None:
    layout = OutputLayout(str(tmp_path))
    if content is not None:
        storage.put_atomic(layout.progress, content)
    assert read_progress(layout) is None


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    watched.enter(JobState.RUNNING)
    path = Path(OutputLayout(str(tmp_path)).progress)
    path.write_text(json.dumps({**json.loads(path.read_text()), "mood": "good"}))
    assert shown(tmp_path).state == "running"


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Hear interrupts also where the tests run in the background, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_as_a_job() -> None:
    """Wait as the main thread waits for its workers: a signal ends a wait at once.

    A signal that arrives just before a wait is heard after it.
    """
    for _ in range(3):
        threading.Event().wait(10)


@pytest.mark.usefixtures("_interruptible")
def test_a_job_hears_that_it_is_cancelled(tmp_path: Path) -> None:
    watched = monitor(tmp_path, seconds=0.01)
    threads_before = threading.active_count()
    started = time.monotonic()
    storage.put_atomic(OutputLayout(str(tmp_path)).cancel, b"")
    with pytest.raises(KeyboardInterrupt), watched.watching():
        wait_as_a_job()
    assert time.monotonic() - started < 20
    assert watched.cancelled
    assert threading.active_count() == threads_before


def test_a_job_hears_that_it_is_paused_and_resumed(tmp_path: Path) -> None:
    asked = YieldSignal()
    asked.request(QUEUE)
    pause = OutputLayout(str(tmp_path)).pause
    with monitor(tmp_path, seconds=0.01, yield_signal=asked).watching():
        for put, wanted in ((True, f"{QUEUE}, and {PERSON}"), (False, QUEUE)):
            storage.put_atomic(pause, b"") if put else storage.delete(pause)
            deadline = time.monotonic() + 20
            while asked.reason != wanted:
                assert time.monotonic() < deadline
                time.sleep(0.005)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("fault", [OSError("reset"), InputError("Cannot look at the bucket")])
def test_a_storage_that_stumbles_does_not_end_the_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    looks = 0
    exists = storage.exists

    def stumbling(location: str) -> bool:
        nonlocal looks
        looks += 1
        if looks < 4:
            raise fault
        return exists(location)

    monkeypatch.setattr(storage, "exists", stumbling)
    storage.put_atomic(OutputLayout(str(tmp_path)).cancel, b"")
    watched = monitor(tmp_path, seconds=0.01)
    with pytest.raises(KeyboardInterrupt), watched.watching():
        wait_as_a_job()
    assert watched.cancelled
    assert looks == 4


def test_a_sign_that_cannot_be_given_does_not_end_the_job(tmp_path: Path) -> None:
    (tmp_path / "_eagleray").write_text("a file where the folder should be")
    watched = monitor(tmp_path)
    watched.enter(JobState.RUNNING)
    assert watched.now().state == "running"
