"""Connects a command to the process that runs it on a cluster: progress out, requests in.

    process_channel().progress("Predicting", 120, 3, 4000)
    with process_channel().able_to_yield(): …
        process_channel().yielded()

That process, `eagleray.scheduling.run`, passes one end of a socket pair on. A command that nobody
runs has none, and then nothing here does anything.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

__all__ = ["HELD", "VARIABLE", "JobChannel", "process_channel", "process_is_held", "read_messages"]

VARIABLE: Final = "EAGLERAY_JOB_CHANNEL"
"""Environment variable with the number of the socket's descriptor."""

HELD: Final = "EAGLERAY_JOB_HELD"
"""Environment variable of a command that prepares its job and waits for the request to start."""

_SECONDS_BETWEEN_PROGRESS: Final = 0.5
_MAX_LINE: Final = 4096


class JobChannel:
    """The command's end of the channel; methods never block for long and never raise.

    Args:
        connection: The socket; None for a command that was not submitted.
    """

    def __init__(self, connection: socket.socket | None) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._last_progress = 0.0

    def progress(self, stage: str, done: int, failed: int, total: int) -> None:
        """Report the progress; most calls in quick succession are left out, but not the last."""
        now = time.monotonic()
        if done < total and now - self._last_progress < _SECONDS_BETWEEN_PROGRESS:
            return
        self._last_progress = now
        self._send(stage=stage, done=done, failed=failed, total=total)

    def hold(self, *, cores: float, gpus: float) -> None:
        """Report what the workers of the job hold from now on.

        Args:
            cores: Number of CPU cores.
            gpus: Number of GPUs.
        """
        self._send(cores=cores, gpus=gpus)

    def resumed_by(self, words: Sequence[str]) -> None:
        """Report the command line that resumes what is done so far, instead of the job's own.

        Args:
            words: The words after the name of the command, such as `--resume`, `run-3f9c`.
        """
        self._send(resumed_by=list(words))

    @contextlib.contextmanager
    def able_to_yield(self) -> Iterator[None]:
        """Say that the job yields its workers on request during the block."""
        self._send(can_yield=True)
        try:
            yield
        finally:
            self._send(can_yield=False)

    def yielded(self) -> None:
        """Say that the workers are released, and that the job waits to be admitted again."""
        self._send(yielded=True)

    def listen(
        self,
        *,
        on_yield: Callable[[], None],
        on_resume: Callable[[], None],
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Call functions in a thread when requests arrive.

        Args:
            on_yield: Called when the job is to yield its workers.
            on_resume: Called when it may go on.
            on_start: Called when a job that is held may start.
        """
        if self._socket is None:
            return
        calls = {"yield": on_yield, "resume": on_resume, "start": on_start}
        connection = self._socket

        def listen() -> None:
            for message in read_messages(connection):
                if call := calls.get(str(message.get("request"))):
                    call()

        threading.Thread(target=listen, name="job-channel", daemon=True).start()

    def _send(self, **message: Any) -> None:
        if self._socket is not None:
            with self._lock, contextlib.suppress(OSError):  # the other end may be gone
                self._socket.sendall(json.dumps(message).encode() + b"\n")


def read_messages(connection: socket.socket) -> Iterator[Mapping[str, Any]]:
    """Yield the messages that arrive, until the other end is closed."""
    with contextlib.suppress(OSError), connection.makefile("rb") as lines:
        while line := lines.readline(_MAX_LINE):
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    yield message


def process_is_held() -> bool:
    """Return whether this process is to prepare its job and wait; asking again returns False."""
    return os.environ.pop(HELD, "") == "1"


@functools.cache
def process_channel() -> JobChannel:
    """Return the channel of this process.

    The variable is removed, so that the processes that this one starts do not use it too.
    """
    number = os.environ.pop(VARIABLE, "")
    if not number.isdecimal():
        return JobChannel(None)
    try:
        connection = socket.socket(fileno=int(number))
        connection.set_inheritable(False)
        return JobChannel(connection)
    except OSError:  # a process between this one and the one that runs it has closed it
        return JobChannel(None)
