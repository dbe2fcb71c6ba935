"""Runs the command of a job as a child process, and reads what it prints and reports.

The child ends with its parent, also if that is killed: nobody would renew the lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Final

from eagleray.core import job_channel, parent_death

__all__ = ["JobCommand"]

_MAX_LINE: Final = 64 * 1024  # of what is printed without a line break
_ERROR: Final = "error: "  # begins the sentence that a command fails with
_MAX_MESSAGE: Final = 1000
_SECONDS_TO_END: Final = 30.0


class JobCommand:
    """A running command.

        command = JobCommand(words, environment, on_line=log.add)
        while command.exit_code is None:
            message = command.next_message(5.0)
        code = command.wait()

    Args:
        words: The words after `eagleray`.
        environment: Its environment.
        on_line: Called in a thread for each line, with whether it is standard output.
        held: Whether the command prepares its job and waits for the request `start`; only commands
            that can yield heed it.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        on_line: Callable[[str, bool], None],
        held: bool = False,
    ) -> None:
        ours, theirs = socket.socketpair()
        self._socket, self._on_line = ours, on_line
        self._messages: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._last_line = self._error_line = ""
        ends_with_parent = [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid())]
        own = {job_channel.HELD: "1"} if held else {}
        with theirs:
            self._process = subprocess.Popen(
                [*ends_with_parent, sys.executable, "-P", "-m", "eagleray", *words],
                env={**environment, **own, job_channel.VARIABLE: str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
            )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._threads = [
            threading.Thread(target=target, args=arguments, daemon=True)
            for target, *arguments in (
                (self._read, self._process.stdout, True),
                (self._read, self._process.stderr, False),
                (self._receive,),
            )
        ]
        for thread in self._threads:
            thread.start()
        threading.Thread(target=self._await_end, daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while the command runs."""
        return self._process.poll()

    @property
    def message(self) -> str:
        """The sentence that the command failed with, else the last line on standard error."""
        return (self._error_line or self._last_line)[:_MAX_MESSAGE]

    def next_message(self, seconds: float) -> Mapping[str, Any]:
        """Wait for a message of the command; an empty one if none comes, or if it ends."""
        try:
            return self._messages.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return {}

    def last_messages(self) -> Iterator[Mapping[str, Any]]:
        """Yield the messages of a command that has ended and that were not taken yet."""
        self._threads[2].join(1.0)
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._messages.get_nowait()

    def request(self, name: str) -> None:
        """Send a request: `start`, `yield` or `resume`."""
        with contextlib.suppress(OSError):  # it has just ended
            self._socket.sendall(json.dumps({"request": name}).encode() + b"\n")

    def interrupt(self) -> None:
        """Ask the command to end as Ctrl-C does, and kill it if it takes long."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def terminate(self) -> None:
        """Ask the command to end at once; may be called in a signal handler."""
        self._process.terminate()

    def wait(self) -> int:
        """Return the exit code, after all that was printed has been read."""
        code = self._process.wait()
        # Processes that the command has left may keep its streams open.
        deadline = time.monotonic() + 5.0
        for thread in self._threads[:2]:
            thread.join(max(0.0, deadline - time.monotonic()))
        return code

    def _read(self, stream: IO[bytes], is_output: bool) -> None:
        with stream:
            while line := stream.readline(_MAX_LINE):
                text = line.decode(errors="replace")
                self._on_line(text, is_output)
                if not is_output and (stripped := text.strip()):
                    self._last_line = stripped
                    if stripped.startswith(_ERROR):
                        self._error_line = stripped.removeprefix(_ERROR)

    def _receive(self) -> None:
        for message in job_channel.read_messages(self._socket):
            self._messages.put(message)

    def _await_end(self) -> None:
        self._process.wait()
        self._messages.put({})  # wakes who waits for a message
