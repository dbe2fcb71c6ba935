"""How a running job shows itself, and hears that it should stop.

A thread puts `progress.json` into the output every few seconds, so that anyone who can read the
output can see how far the job is, and looks for the mark that cancels it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from eagleray.batch.worker import ShardSummary
from eagleray.core.errors import InputError
from eagleray.core.job_state import JobState
from eagleray.io import storage
from eagleray.sharded.layout import OutputLayout

__all__ = ["JobMonitor", "Progress", "read_progress"]

_SECONDS_LOCAL, _SECONDS_REMOTE = 1.0, 10.0
_RATE_WINDOW = 60.0


class Progress(BaseModel):
    """A job at one moment.

    Attributes:
        job_id: Of the plan.
        state: Where it is.
        host: That runs it.
        pid: Of its driver there.
        started: Seconds since the epoch, of this run.
        updated: Seconds since the epoch.
        num_rows: Inputs.
        num_done: With a result so far, in all runs.
        num_failed: Of these.
        images_per_second: In the last minute.
        seconds_left: At that rate; None where there is none yet.
        message: Why it stopped.
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
    """Return the last sign of life of a job; None where there is none."""
    try:
        return Progress.model_validate_json(storage.read_bytes(layout.progress))
    except (OSError, ValueError):
        return None


class JobMonitor:
    """Counts what is done and tells the world.

    Args:
        layout: Of the output.
        job_id: Of the plan.
        num_rows: Inputs.
        num_done: With a result from earlier runs.
        num_failed: Of these.
    """

    def __init__(
        self, layout: OutputLayout, job_id: str, num_rows: int, num_done: int, num_failed: int
    ) -> None:
        self._layout, self.job_id, self._num_rows = layout, job_id, num_rows
        self.num_done, self.num_failed = num_done, num_failed
        self.cancelled = False
        self._state = JobState.RUNNING
        self._message = ""
        self._started = time.time()
        self._recent: deque[tuple[float, int]] = deque([(self._started, num_done)])
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def add(self, summary: ShardSummary) -> None:
        """Count a finished shard."""
        with self._lock:
            self.num_done += summary.num_rows
            self.num_failed += summary.num_failed
            now = time.time()
            self._recent.append((now, self.num_done))
            while len(self._recent) > 2 and self._recent[0][0] < now - _RATE_WINDOW:
                self._recent.popleft()

    def enter(self, state: JobState, message: str = "") -> None:
        """Note a new state and show it at once."""
        with self._lock:
            self._state, self._message = state, message
        self._put()

    def now(self) -> Progress:
        """Return the job at this moment."""
        with self._lock:
            moment = time.time()
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
        """Show signs of life, and interrupt the main thread when the job is cancelled."""
        remote = storage.is_remote(self._layout.location)
        seconds = _SECONDS_REMOTE if remote else _SECONDS_LOCAL
        thread = threading.Thread(target=self._watch, args=(seconds,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self, seconds: float) -> None:
        while True:
            self._put()
            if self._ended.wait(seconds):
                return
            with contextlib.suppress(OSError, InputError):
                if not self.cancelled and storage.exists(self._layout.cancel):
                    self.cancelled = True
                    # A signal ends whatever the main thread waits for;
                    # `_thread.interrupt_main` would be heard only after that.
                    os.kill(os.getpid(), signal.SIGINT)

    def _put(self) -> None:
        # A sign of life that cannot be given is no reason to end the life.
        with contextlib.suppress(OSError, InputError):
            storage.put_atomic(self._layout.progress, self.now().model_dump_json(indent=2).encode())
