"""Notices when a Ray of the command's own ends, which Ray itself does not report."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil

__all__ = ["OwnRay", "watched_ray"]

_NEEDED = {"gcs_server": "Ray's control store", "raylet": "Ray's node manager"}
_CHECK_EVERY = 0.5  # seconds
_SECONDS_TO_LEAVE = 3.0
_FAMILY_EVERY = 10  # checks between two looks at what has been started


@dataclass
class OwnRay:
    """The processes of a Ray that this process started.

    Attributes:
        needed: Those without which nothing goes on, by what they are.
        family: All of them, and what they started.
    """

    needed: dict[str, psutil.Process] = field(default_factory=dict)
    family: list[psutil.Process] = field(default_factory=list)

    def find(self) -> None:
        """Look for them; those that were seen before are kept, also when their parent has ended."""
        children = psutil.Process().children(recursive=True)
        known = set(self.family)
        self.family += [process for process in children if process not in known]
        for process in children if not self.needed else ():
            with contextlib.suppress(psutil.Error):
                if (what := _NEEDED.get(process.name())) is not None:
                    self.needed[what] = process

    def ended(self) -> str | None:
        """Return what has ended of what is needed."""
        return next((what for what, process in self.needed.items() if not _is_alive(process)), None)

    def kill(self) -> None:
        """End all that is left; nothing else does, once Ray is gone."""
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
def watched_ray(
    ended: Callable[[OwnRay, str], None],
    stuck: Callable[[], None],
    *,
    seconds_to_leave: float = _SECONDS_TO_LEAVE,
) -> Iterator[OwnRay]:
    """Watch the Ray that this process has started, for the time of the block.

    Args:
        ended: Is called once, in another thread, with what has ended.
        stuck: Is called there where the block is not left soon after: it waits for an answer of
            Ray, which gives up after a minute and ends the process without a word.
        seconds_to_leave: Time that the block has.
    """
    own, stop = OwnRay(), threading.Event()
    own.find()

    def watch() -> None:
        number = 0
        while not stop.wait(_CHECK_EVERY):
            if (what := own.ended()) is not None:
                ended(own, what)
                if not stop.wait(seconds_to_leave):
                    stuck()
                return
            number += 1
            if number % _FAMILY_EVERY == 0:
                own.find()

    thread = threading.Thread(target=watch, name="ray-watch", daemon=True)
    thread.start()
    try:
        yield own
    finally:
        stop.set()
        thread.join()
