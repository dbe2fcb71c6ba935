"""Notices when an embedded Ray ends, which Ray itself does not report."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil

__all__ = ["RayProcesses", "watch_ray"]

_ESSENTIAL = {"gcs_server": "Ray's control store", "raylet": "Ray's node manager"}
_CHECK_INTERVAL = 0.5  # seconds
_SECONDS_TO_LEAVE = 3.0
_CHECKS_PER_SEARCH = 10  # checks between two searches for new processes


@dataclass
class RayProcesses:
    """The processes of a Ray that this process started.

    Attributes:
        essential: Processes without which Ray cannot continue, by description.
        family: All processes, including those that they started.
    """

    essential: dict[str, psutil.Process] = field(default_factory=dict)
    family: list[psutil.Process] = field(default_factory=list)

    def find(self) -> None:
        """Search for new processes; known ones are kept, even if their parent has ended."""
        children = psutil.Process().children(recursive=True)
        known = set(self.family)
        self.family += [process for process in children if process not in known]
        for process in children if not self.essential else ():
            with contextlib.suppress(psutil.Error):
                if (what := _ESSENTIAL.get(process.name())) is not None:
                    self.essential[what] = process

    def ended(self) -> str | None:
        """Return the description of an essential process that has ended; None if all run."""
        return next((it for it, process in self.essential.items() if not _is_alive(process)), None)

    def kill(self) -> None:
        """Kill all remaining processes; once Ray has ended, nothing else does."""
        self.find()
        for process in self.family:
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.name() != "haproxy":
                    process.kill()
        psutil.wait_procs(self.family, timeout=3)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


@contextlib.contextmanager
def watch_ray(
    on_end: Callable[[RayProcesses, str], None],
    on_stuck: Callable[[], None],
    *,
    seconds_to_leave: float = _SECONDS_TO_LEAVE,
) -> Iterator[RayProcesses]:
    """Watch the Ray that this process has started, while the block runs.

    Args:
        on_end: Called once, in another thread, with the processes and what has ended.
        on_stuck: Called in the same thread if the block is not left soon after: it waits for a
            response of Ray, whose client gives up after a minute and exits without a message.
        seconds_to_leave: Seconds in which the block must be left.
    """
    processes, stop = RayProcesses(), threading.Event()
    processes.find()

    def watch() -> None:
        number = 0
        while not stop.wait(_CHECK_INTERVAL):
            if (what := processes.ended()) is not None:
                on_end(processes, what)
                if not stop.wait(seconds_to_leave):
                    on_stuck()
                return
            number += 1
            if number % _CHECKS_PER_SEARCH == 0:
                processes.find()

    thread = threading.Thread(target=watch, name="ray-watch", daemon=True)
    thread.start()
    try:
        yield processes
    finally:
        stop.set()
        thread.join()
