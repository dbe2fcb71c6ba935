"""One run of a durable job: does the shards that are left and publishes its progress."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import EaglerayError, JobFailedError
from eagleray.core.job_channel import JobChannel, process_channel
from eagleray.core.job_state import JobState
from eagleray.core.yielding import ADMISSION, QUEUE, Turn, YieldSignal
from eagleray.io import storage
from eagleray.sharded.attempts import Shards
from eagleray.sharded.failure_limit import FailureLimit
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader
from eagleray.sharded.metrics import ShardMetrics
from eagleray.sharded.plan import Plan
from eagleray.sharded.progress import JobMonitor, read_progress
from eagleray.sharded.shard_results import FinishedShard

__all__ = ["JobRun"]

S = TypeVar("S", bound=FinishedShard)
_SECONDS_BETWEEN_LOOKS = 0.2  # whether the job may go on


@dataclass(frozen=True)
class JobRun:
    """One run of a job, between its plan and its commit.

        with run.monitored() as monitor:
            for shard in run.finish_shards("Predicting", work, monitor): ...
            run.check_failures(num_failed)
            ...

    Attributes:
        layout: The output.
        plan: Plan of the job.
        max_failures: Number of failures that stops the job.
        reporter: Receives the progress.
        yield_signal: Asks the job to yield its workers.
        channel: Tells the queue of jobs, if the job came through one, that it has yielded them.
    """

    layout: OutputLayout
    plan: Plan[Any]
    max_failures: FailureLimit
    reporter: ProgressReporter
    yield_signal: YieldSignal = field(default_factory=YieldSignal)
    channel: JobChannel = field(default_factory=process_channel)

    @contextlib.contextmanager
    def monitored(self) -> Iterator[JobMonitor]:
        """Publish the progress of the run from its start to its end.

        Raises:
            JobFailedError: If the job is cancelled, fails, or the storage fails; what is done is
                kept.
        """
        for request in (self.layout.cancel, self.layout.pause):  # of a run before
            storage.delete(request)
        monitor = self._new_monitor()
        with _end_published(monitor), monitor.watching():
            yield monitor
            monitor.enter(JobState.SUCCEEDED)

    def finish_shards(
        self, title: str, work: Callable[[Shards, Turn], Iterator[S]], monitor: JobMonitor
    ) -> Iterator[S]:
        """Do the shards that have no result, and yield each as it is finished.

        When the job is asked to yield its workers, it waits until it may go on with what is left.

        Args:
            title: Title of the progress bar.
            work: Does shards, in any order; not called when all have their results. When the turn
                is over it ends early, without workers, and is called again in the next turn.
            monitor: Counts the results.

        Raises:
            JobFailedError: If too many inputs fail.
        """
        is_left = ~self._has_result
        if not is_left.all():
            self.reporter.note(
                f"Job {self.plan.job_id} resumes: {monitor.num_done:,} of {self.plan.num_rows:,} "
                "images have their results already."
            )
        self._check_failures_so_far(monitor)
        if not is_left.any():
            return
        turn = self._next_turn(monitor, self.reporter.note)
        shards = work(np.flatnonzero(is_left), turn)  # may start Ray, which takes seconds
        with (
            self.reporter.progress(title, self.plan.num_rows) as bar,
            self.channel.able_to_yield(),
            self._unless_committed(),
        ):
            bar.advance(monitor.num_done, failed=monitor.num_failed)
            metrics = ShardMetrics(self.plan)
            metrics.start(monitor.num_done)
            while True:
                for shard in shards:
                    is_left[shard.shard] = False
                    monitor.add(shard)
                    metrics.add(shard, monitor.num_done)
                    bar.advance(shard.num_rows, failed=shard.num_failed)
                    yield shard
                    if monitor.cancelled:  # where signals are ignored, as behind `nohup`
                        raise KeyboardInterrupt
                    self._check_failures_so_far(monitor)
                if not (turn.over and is_left.any()):
                    return
                turn = self._next_turn(monitor, bar.line)
                if storage.exists(self.layout.commit):  # by another run
                    return
                shards = work(np.flatnonzero(is_left), turn)

    def _next_turn(self, monitor: JobMonitor, say: Callable[[str], None]) -> Turn:
        """Wait until no request to yield is left."""
        signal = self.yield_signal
        if signal.requested_for(ADMISSION):
            monitor.enter(JobState.QUEUED, "The job is prepared, and waits for its turn.")
            self._wait_until(lambda: not signal.requested_for(ADMISSION), monitor)
            monitor.enter(JobState.RUNNING)
        if signal.requested:
            waits = f"The job has yielded its workers ({signal.reason}) and waits for its turn"
            done = f"{monitor.num_done:,} of {self.plan.num_rows:,} images are done"
            monitor.enter(JobState.YIELDED, f"{waits}; {done}.")
            say(f"{waits}; {done}.")
            self._wait(monitor)
            monitor.enter(JobState.RUNNING)
            say("The job goes on.")
        return Turn(signal)

    def _wait(self, monitor: JobMonitor) -> None:
        told = False

        def is_over() -> bool:
            nonlocal told
            asked = self.yield_signal.requested_for(QUEUE)  # perhaps later than by a person
            if asked and not told:
                self.channel.yielded()
            told = asked
            return not self.yield_signal.requested

        self._wait_until(is_over, monitor)

    def _wait_until(self, is_over: Callable[[], bool], monitor: JobMonitor) -> None:
        while not is_over():
            if monitor.cancelled:
                raise KeyboardInterrupt
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    @functools.cached_property
    def _has_result(self) -> npt.NDArray[np.bool_]:
        """Whether each shard had its result when this run began, bool (number of shards,)."""
        found = np.zeros(self.plan.num_shards, np.bool_)
        for number in self.layout.finished_shards():
            if number < len(found):
                found[number] = True
        return found

    @contextlib.contextmanager
    def _unless_committed(self) -> Iterator[None]:
        """End the work quietly if another run has committed and removed the shards' folder."""
        try:
            yield
        except FileNotFoundError:
            if not storage.exists(self.layout.commit):
                raise

    def check_failures(self, num_failed: int) -> None:
        """Keep a job with too many failures from its commit.

        Args:
            num_failed: Number of failures of all inputs, as their results say: a run that was
                killed may not have published its last ones.

        Raises:
            JobFailedError: If they are too many.
        """
        num_rows = self.plan.num_rows
        self.max_failures.check(num_failed, num_rows, num_rows, self.plan.job_id)

    def _check_failures_so_far(self, monitor: JobMonitor) -> None:
        self.max_failures.check(
            monitor.num_failed, monitor.num_done, self.plan.num_rows, self.plan.job_id
        )

    def _new_monitor(self) -> JobMonitor:
        manifest = ManifestReader(self.layout.manifest(self.plan.manifest), self.plan.num_shards)
        found = self._has_result
        num_done = int(manifest.shard_sizes()[found].sum()) if found.any() else 0
        before = read_progress(self.layout)
        num_failed = before.num_failed if before and num_done else 0
        return JobMonitor(
            self.layout,
            self.plan.job_id,
            self.plan.num_rows,
            num_done,
            num_failed,
            yield_signal=self.yield_signal,
        )


@contextlib.contextmanager
def _end_published(monitor: JobMonitor) -> Iterator[None]:
    """Publish in the output why a run does not reach its end."""
    try:
        yield
    except KeyboardInterrupt:
        if not monitor.cancelled:
            monitor.enter(JobState.STOPPED, "interrupted")
            raise
        monitor.enter(JobState.CANCELLED)
        raise JobFailedError(
            f"Job {monitor.job_id} was cancelled after {monitor.num_done:,} images; they are kept: "
            "run the same command again to resume."
        ) from None
    except EaglerayError as error:
        monitor.enter(JobState.FAILED, str(error))
        raise
    except OSError as error:  # a full disk, or a storage that is gone for good
        monitor.enter(JobState.FAILED, str(error))
        raise JobFailedError(
            f"The storage failed ({error}). What is done is kept: run the same command again to "
            "resume."
        ) from error
    except BaseException as error:
        monitor.enter(JobState.FAILED, f"{type(error).__name__}: {error}")
        raise
