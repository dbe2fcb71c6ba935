"""A run of a durable job, whatever its work: counts, limits, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eagleray.batch.shard_summary import ShardSummary, decode_shard
from eagleray.core.errors import JobFailedError, PackageError
from eagleray.core.job_channel import JobChannel
from eagleray.core.job_state import JobState
from eagleray.core.yielding import ADMISSION, PERSON, QUEUE, Turn, YieldSignal
from eagleray.io import storage
from eagleray.sharded.attempts import Shards
from eagleray.sharded.failure_limit import FailureLimit
from eagleray.sharded.progress import Progress, read_progress
from eagleray.sharded.run import JobRun
from tests.support.batch import Output, output
from tests.support.reporting import RecordingReporter


class Work:
    """Puts the results of an output's shards, and remembers which it was given."""

    def __init__(self, made: Output) -> None:
        self._made = made
        self.given: list[int] = []

    def __call__(self, pending: Shards, turn: Turn) -> Iterator[ShardSummary]:
        self.given += pending.tolist()
        for shard in pending.tolist():
            if turn.over:
                return
            self._made.put_shards([shard])
            yield decode_shard(storage.read_bytes(self._made.layout.shard(shard)))[1]


def run_of(made: Output, limit: str = "100%") -> tuple[JobRun, RecordingReporter]:
    reporter = RecordingReporter()
    return JobRun(made.layout, made.plan, FailureLimit.parse(limit), reporter), reporter


def progress_of(made: Output) -> Progress:
    found = read_progress(made.layout)
    assert found is not None
    return found


def test_a_run_does_what_is_left_and_counts_all(tmp_path: Path) -> None:
    made = output(tmp_path, rows=40, failed={3, 39}, shards=[1])
    run, reporter = run_of(made)
    work = Work(made)
    with run.monitored() as monitor:
        assert [shard.shard for shard in run.finish_shards("Working", work, monitor)] == [0, 2]
    assert work.given == [0, 2]
    assert reporter.advanced == [(16, 0), (16, 1), (8, 1)]
    assert any("resumes: 16 of 40 images" in note for note in reporter.notes)
    shown = progress_of(made)
    assert (shown.state, shown.num_done, shown.num_failed) == (JobState.SUCCEEDED, 40, 2)


class AtEachTurn(RecordingReporter):
    """Does something whenever the job says that it waits for its turn."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then

    def line(self, text: str) -> None:
        super().line(text)
        if "waits for its turn" in text:
            self._then()


def test_a_run_that_is_asked_to_yield_waits_and_does_each_shard_once(tmp_path: Path) -> None:
    made, signal = output(tmp_path, rows=40, shards=[]), YieldSignal()
    seen: list[Progress] = []

    def let_it_go_on() -> None:
        seen.append(progress_of(made))
        signal.clear()

    reporter = AtEachTurn(let_it_go_on)
    run = JobRun(made.layout, made.plan, FailureLimit.parse("1"), reporter, signal)
    work = Work(made)
    done = []
    with run.monitored() as monitor:
        for shard in run.finish_shards("Working", work, monitor):
            done.append(shard.shard)
            if shard.shard != 1:
                signal.request()
    assert done == [0, 1, 2]
    assert work.given == [0, 1, 2, 1, 2]  # the rest is given again, and nothing of it was begun
    assert [one.state for one in seen] == [JobState.YIELDED]
    assert not seen[0].state.has_ended
    assert QUEUE in seen[0].message
    assert "16 of 40 images are done" in seen[0].message
    assert reporter.lines[-1] == "The job goes on."
    assert progress_of(made).state == JobState.SUCCEEDED


def test_the_queue_hears_of_a_run_that_it_asks_while_a_person_has_paused_it(
    tmp_path: Path,
) -> None:
    made, signal = output(tmp_path, rows=40, shards=[]), YieldSignal()
    said: list[str] = []

    class Channel(JobChannel):
        def yielded(self) -> None:
            said.append("yielded")
            signal.clear(QUEUE)

    reporter = AtEachTurn(lambda: signal.request(QUEUE))
    limit = FailureLimit.parse("1")
    run = JobRun(made.layout, made.plan, limit, reporter, signal, Channel(None))
    with run.monitored() as monitor:
        for _ in run.finish_shards("Working", Work(made), monitor):
            if not said:
                signal.request(PERSON)
                threading.Thread(target=resume_after, args=(said, signal)).start()
    assert said == ["yielded"]


def resume_after(said: list[str], signal: YieldSignal) -> None:
    """Withdraw a person's request when the queue has heard."""
    deadline = time.monotonic() + 20
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    signal.clear(PERSON)


def test_a_run_that_is_held_prepares_itself_and_yields_nothing(tmp_path: Path) -> None:
    made, signal = output(tmp_path, rows=40, shards=[]), YieldSignal()
    signal.request(ADMISSION)
    said: list[str] = []

    class Channel(JobChannel):
        def yielded(self) -> None:
            said.append("yielded")

    reporter = RecordingReporter()
    limit = FailureLimit.parse("100%")
    run = JobRun(made.layout, made.plan, limit, reporter, signal, Channel(None))
    work = Work(made)

    def admit() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            shown = read_progress(made.layout)
            if shown is not None and shown.state == JobState.QUEUED:
                said.append(f"{shown.state}, {len(work.given)} shards given")
                break
            time.sleep(0.02)
        signal.clear(ADMISSION)

    with run.monitored() as monitor:
        thread = threading.Thread(target=admit)
        thread.start()
        assert len(list(run.finish_shards("Working", work, monitor))) == 3
        thread.join()
    assert said == ["queued, 0 shards given"]
    assert not any("yielded" in note for note in reporter.notes)
    assert progress_of(made).state == JobState.SUCCEEDED


def test_a_run_that_yields_can_be_cancelled(tmp_path: Path) -> None:
    made, signal = output(tmp_path, rows=40, shards=[]), YieldSignal()
    run = JobRun(made.layout, made.plan, FailureLimit.parse("1"), RecordingReporter(), signal)
    signal.request(PERSON)

    def cancelled() -> None:
        with run.monitored() as monitor:
            monitor.cancelled = True
            list(run.finish_shards("Working", Work(made), monitor))

    with pytest.raises(JobFailedError, match="was cancelled after 0 images"):
        cancelled()
    assert progress_of(made).state == JobState.CANCELLED


def test_a_run_that_yields_to_another_run_of_its_job_ends_with_it(tmp_path: Path) -> None:
    made, signal = output(tmp_path, rows=40, shards=[]), YieldSignal()

    def other_run_commits() -> None:
        made.put_shards()
        made.commit()
        signal.clear()

    reporter = AtEachTurn(other_run_commits)
    run = JobRun(made.layout, made.plan, FailureLimit.parse("1"), reporter, signal)
    with run.monitored() as monitor:
        for _ in run.finish_shards("Working", work := Work(made), monitor):
            signal.request()
    assert work.given == [0, 1, 2]


def test_a_run_that_is_cancelled_keeps_what_is_done(tmp_path: Path) -> None:
    made = output(tmp_path, rows=40, shards=[])
    run, _ = run_of(made)
    storage.put_atomic(made.layout.cancel, b"")  # of a run before, which does not count

    def cancelled() -> None:
        with run.monitored() as monitor:
            for _ in run.finish_shards("Working", Work(made), monitor):
                monitor.cancelled = True

    with pytest.raises(JobFailedError, match="was cancelled after 16 images"):
        cancelled()
    assert progress_of(made).state == JobState.CANCELLED
    assert set(made.layout.finished_shards()) == {0}


@pytest.mark.parametrize(
    ("error", "raised", "state", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, JobState.STOPPED, "interrupted"),
        (OSError("disk full"), JobFailedError, JobState.FAILED, "disk full"),
        (JobFailedError("The workers stopped."), JobFailedError, JobState.FAILED, "workers"),
        (PackageError("It is altered."), PackageError, JobState.FAILED, "It is altered."),
        (ZeroDivisionError("oh"), ZeroDivisionError, JobState.FAILED, "ZeroDivisionError: oh"),
    ],
    ids=repr,
)
def test_the_output_says_how_a_run_ended(
    tmp_path: Path,
    error: BaseException,
    raised: type[BaseException],
    state: JobState,
    message: str,
) -> None:
    made = output(tmp_path, rows=40, shards=[0])
    run, _ = run_of(made)
    with pytest.raises(raised), run.monitored():
        raise error
    shown = progress_of(made)
    assert (shown.state, shown.num_done) == (state, 16)
    assert message in shown.message


def test_failures_that_a_killed_run_did_not_publish_still_count_before_the_commit(
    tmp_path: Path,
) -> None:
    made = output(tmp_path, rows=40, failed={1, 2, 3})
    run, _ = run_of(made, "2")
    with pytest.raises(JobFailedError, match="3 of 40 images failed so far"):
        run.check_failures(3)
    run.check_failures(2)


def test_a_run_whose_shards_were_removed_by_the_winner_ends_quietly(tmp_path: Path) -> None:
    made = output(tmp_path, rows=40, shards=[])
    run, _ = run_of(made)

    def work(pending: Shards, turn: Turn) -> Iterator[ShardSummary]:
        made.put_shards()
        made.commit()
        yield from ()
        raise FileNotFoundError("the folder of shards")

    with run.monitored() as monitor:
        assert list(run.finish_shards("Working", work, monitor)) == []
    assert progress_of(made).state == JobState.SUCCEEDED


def test_a_file_that_is_missing_without_a_commit_fails_a_run(tmp_path: Path) -> None:
    made = output(tmp_path, rows=40, shards=[])
    run, _ = run_of(made)

    def work(pending: Shards, turn: Turn) -> Iterator[ShardSummary]:
        yield from ()
        raise FileNotFoundError("the manifest")

    with pytest.raises(JobFailedError, match="The storage failed"), run.monitored() as monitor:
        list(run.finish_shards("Working", work, monitor))
