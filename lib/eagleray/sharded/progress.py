"""The progress of a running job, published in its output, and the request to cancel it.

A thread puts `progress.json` into the output every few seconds, so that everyone who can read the
output can see how far the job is, and looks for the files that cancel it and have it yield.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from pydantic import BaseModel, ConfigDict

from eagleray.core.errors import InputError
from eagleray.core.job_state import JobState
from eagleray.core.yielding import PERSON, YieldSignal
from eagleray.io import storage
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.shard_results import FinishedShard

__all__ = ["JobMonitor", "Progress", "read_progress"]

_SECONDS_LOCAL, _SECONDS_REMOTE = 1.0, 10.0
_RATE_WINDOW = 60.0


class Progress(BaseModel):
    """A job at one moment.

    Attributes:
        job_id: Identifier of the job.
        state: State of the job.
        host: Host name of the driver's machine.
        pid: Process identifier of the driver.
        started: Start of this run, in seconds since the epoch.
        updated: Time of this value, in seconds since the epoch.
        num_rows: Number of inputs.
        num_done: Number of inputs with a result so far, in all runs.
        num_failed: Number of these that failed.
        images_per_second: Throughput in the last minute.
        seconds_left: Expected time left at that throughput; None while it is unknown.
        message: Reason why the job stopped or waits, or what it does beside its shards.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    job_id: str
    state: JobState
    host: str
    pid: int
    started: float
    updated: float
    num_rows: int
    num_done: int
    num_failed: int
    images_per_second: float
    seconds_left: float | None
    message: str = ""


def read_progress(layout: OutputLayout) -> Progress | None:
    """Return the last published progress of a job, or None if there is none."""
    try:
        return Progress.model_validate_json(storage.read_bytes(layout.progress))
    except (OSError, ValueError):
        return None


class JobMonitor:
    """Counts what is done and publishes it in the output.

    Args:
        layout: The output.
        job_id: Identifier of the job.
        num_rows: Number of inputs.
        num_done: Number of inputs with a result from earlier runs.
        num_failed: Number of these that failed.
        yield_signal: Asked to yield as long as the file is there that pauses the job.
        seconds: Time between two updates; None for 1 s on a disk and 10 s elsewhere.
        clock: Returns seconds since the epoch.
    """

    def __init__(
        self,
        layout: OutputLayout,
        job_id: str,
        num_rows: int,
        num_done: int,
        num_failed: int,
        *,
        yield_signal: YieldSignal | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        remote = storage.is_remote(layout.location)
        self._seconds = seconds or (_SECONDS_REMOTE if remote else _SECONDS_LOCAL)
        self._clock = clock
        self._yield_signal = yield_signal or YieldSignal()
        self._layout, self.job_id, self._num_rows = layout, job_id, num_rows
        self.num_done, self.num_failed = num_done, num_failed
        self.cancelled = False
        self._state = JobState.RUNNING
        self._message = ""
        self._started = clock()
        self._recent: deque[tuple[float, int]] = deque([(self._started, num_done)])
        self._lock = threading.Lock()
        self._publishing = threading.Lock()
        self._ended = threading.Event()

    def add(self, shard: FinishedShard) -> None:
        """Count a finished shard."""
        with self._lock:
            self.num_done += shard.num_rows
            self.num_failed += shard.num_failed
            now = self._clock()
            self._recent.append((now, self.num_done))
            while len(self._recent) > 2 and self._recent[0][0] < now - _RATE_WINDOW:
                self._recent.popleft()

    def enter(self, state: JobState, message: str = "") -> None:
        """Enter a new state and publish it at once."""
        with self._lock:
            self._state, self._message = state, message
        self._put()

    def now(self) -> Progress:
        """Return the progress at this moment."""
        with self._lock:
            moment = self._clock()
            since, done_then = self._recent[0]
            rate = (self.num_done - done_then) / max(moment - since, 1e-3)
            return Progress(
                job_id=self.job_id,
                state=self._state,
                host=socket.gethostname(),
                pid=os.getpid(),
                started=self._started,
                updated=moment,
                num_rows=self._num_rows,
                num_done=self.num_done,
                num_failed=self.num_failed,
                images_per_second=round(rate, 2),
                seconds_left=round((self._num_rows - self.num_done) / rate, 1) if rate else None,
                message=self._message,
            )

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Publish updates, and interrupt the main thread when the job is cancelled."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        while True:
            self._put()
            if self._ended.wait(self._seconds):
                return
            with contextlib.suppress(OSError, InputError):
                self._look_for_requests()

    def _look_for_requests(self) -> None:
        if self.cancelled:
            return
        if storage.exists(self._layout.cancel):
            self.cancelled = True
            # A signal interrupts a waiting main thread at once;
            # `_thread.interrupt_main` only after the wait.
            os.kill(os.getpid(), signal.SIGINT)
        elif storage.exists(self._layout.pause):
            self._yield_signal.request(PERSON)
        else:
            self._yield_signal.clear(PERSON)

    def _put(self) -> None:
        # One after the other, so that an older state never replaces a newer one. A job whose
        # progress cannot be published still does its work.
        with self._publishing, contextlib.suppress(OSError, InputError):
            storage.put_atomic(self._layout.progress, self.now().model_dump_json(indent=2).encode())
