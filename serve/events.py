"""The events that a running service command handles: signals, faults of parts, the end of Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
from collections.abc import Iterator

from eagleray.cli.console import Console, command_errors
from eagleray.core.errors import EaglerayError, JobFailedError
from eagleray.core.logs import writes_json
from eagleray.serve.ray_watch import RayProcesses, watch_ray
from eagleray.serving.logs import log_event

__all__ = ["CommandEvents"]


class CommandEvents:
    """The events of one service command.

    Args:
        console: Console for messages to the user.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._ray: RayProcesses | None = None
        self._end_of_ray = JobFailedError("Ray ended.")
        self._events: queue.SimpleQueue[int | EaglerayError] = queue.SimpleQueue()

    def on_fault(self, sentence: str) -> None:
        """Report a fault of a part on the terminal and in the log."""
        if self._ray is not None and self._ray.ended() is not None:
            return  # a consequence of the end of Ray, which is reported as the command ends
        if not writes_json():  # then the line of the log is what the terminal gets
            self._console.warn(sentence)
        log_event(logging.WARNING, "fault", detail=sentence)

    @contextlib.contextmanager
    def watching_ray(self) -> Iterator[None]:
        """End the service if the embedded Ray ends while the block runs."""
        with watch_ray(self._on_ray_end, self._exit) as self._ray:
            yield

    def _on_ray_end(self, processes: RayProcesses, what: str) -> None:
        processes.kill()
        self._end_of_ray = JobFailedError(
            f"{what} ended, and with it the service: no replica could be replaced any more. "
            "Start the command again."
        )
        self._events.put(self._end_of_ray)

    def _exit(self) -> None:
        """End the process, whose main thread waits for a Ray that has ended."""
        try:
            with command_errors():
                raise self._end_of_ray
        except SystemExit as end:
            os._exit(int(str(end.code)))

    def reload_requests(self) -> Iterator[None]:
        """Yield for each SIGHUP, until SIGINT or SIGTERM.

        Raises:
            JobFailedError: If the embedded Ray ends.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: self._events.put(number))
        while (event := self._events.get()) == signal.SIGHUP:
            yield
        if isinstance(event, EaglerayError):
            raise event
