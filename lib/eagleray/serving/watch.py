"""The registry and the database, read again and again: what changed there reaches the service.

Whoever promotes, rolls back, pins or revokes changes the registry or the database and nothing else;
every replica finds out within a second or two. When either does not answer, the last snapshot
stays in force, and its age is there to be seen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from eagleray.errors import EaglerayError
from eagleray.models.registry import Registry
from eagleray.serving.applications import Applications
from eagleray.serving.routes import Routes
from eagleray.serving.routing import Snapshot

__all__ = ["Watcher", "read_snapshot"]

log = logging.getLogger(__name__)


def read_snapshot(registry: Registry) -> Snapshot:
    """Read what the service goes by.

    Raises:
        UserError: The registry or the database does not answer.
    """
    settings = registry.settings
    database = registry.history.database
    applications, keys = Applications(database, who=settings.who).read()
    aliases, newest = registry.aliases()
    return Snapshot(
        aliases=aliases,
        newest=newest,
        routes=Routes(database, who=settings.who).read(),
        applications=applications,
        keys=keys,
    )


class Watcher:
    """Reads a snapshot at intervals, in a thread.

    Args:
        read: Returns the present snapshot.
        changed: Is called in the thread with each snapshot that differs from the one before.
        seconds: From the end of one reading to the next.
    """

    def __init__(
        self,
        read: Callable[[], Snapshot],
        changed: Callable[[Snapshot], None],
        *,
        seconds: float = 1.0,
    ) -> None:
        self._read, self._changed, self._seconds = read, changed, seconds
        self._stop = threading.Event()
        self._last: Snapshot | None = None
        self._read_at = time.monotonic()
        self.fault: str | None = None
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self, first: Snapshot) -> None:
        """Begin, with a snapshot that its user has already."""
        self._last, self._read_at = first, time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End; the reading that is under way is waited for."""
        self._stop.set()
        self._thread.join()

    @property
    def age(self) -> float:
        """Seconds since the registry and the database answered last."""
        return time.monotonic() - self._read_at

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                snapshot = self._read()
            except EaglerayError as error:
                if self.fault is None:
                    log.warning("the last snapshot stays in force: %s", error)
                self.fault = str(error)
                continue
            if self.fault is not None:
                log.warning("registry and database answer again")
            self.fault, self._read_at = None, time.monotonic()
            if snapshot != self._last:
                self._last = snapshot
                self._changed(snapshot)
