"""The registry and the database, read again and again: what changed there reaches the service.

Whoever promotes, rolls back, pins or revokes changes the registry or the database and nothing else;
every replica finds out within a second or two. Each of the two is read on its own, so that a
registry that does not answer keeps no revoked key valid. When one does not answer, what it said
last stays in force, and its age is there to be seen; nothing that goes wrong ends the watching.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from eagleray.core.errors import DatabaseReplacedError, EaglerayError, OutageError
from eagleray.database.store import OpenDatabase
from eagleray.registry.registry import Registry
from eagleray.registry.tracking import sqlite_file
from eagleray.serving.applications import Applications
from eagleray.serving.routes import Routes
from eagleray.serving.routing import Snapshot

__all__ = ["DatabaseReader", "RegistryReader", "SnapshotFields", "Watcher", "read_snapshot"]

log = logging.getLogger(__name__)

_SECONDS_TO_END = 5.0
_MAX_KINDS = 100  # of faults in a row that are told apart

SnapshotFields = Mapping[str, Any]
"""Some fields of a `Snapshot`, by their names."""


def read_snapshot(registry: Registry) -> Snapshot:
    """Read what the service goes by.

    Raises:
        OutageError: The registry or the database does not answer.
    """
    database = DatabaseReader(registry.history.database)
    return Snapshot(**{**RegistryReader(registry)(), **database()})


class DatabaseReader:
    """Reads who may ask, and the routes of models.

    Args:
        database: Where both are kept.
        last_change: Number of the last change of an application that is known.
    """

    def __init__(self, database: OpenDatabase, *, last_change: int = 0) -> None:
        self._database, self._last_change = database, last_change

    def __call__(self) -> SnapshotFields:
        """Return the fields of a snapshot that the database knows.

        Raises:
            OutageError: It does not answer.
            DatabaseReplacedError: It is another one than it was, or what it was earlier.
        """
        callers = Applications(self._database, who="").read()
        if callers.last_change < self._last_change:
            place = self._database.database.place
            raise DatabaseReplacedError(
                f"The database {place} was put back to an earlier state, in which keys may hold "
                "that were revoked since; start the service anew if that is meant."
            )
        self._last_change = callers.last_change
        return {
            "routes": Routes(self._database, who="").read(),
            "applications": callers.applications,
            "keys": callers.keys,
            "last_change": callers.last_change,
        }


class RegistryReader:
    """Reads which models there are, and where their aliases point.

    Args:
        registry: With the models.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._file: tuple[int, int] | None = None  # device and inode, when it had models

    def __call__(self) -> SnapshotFields:
        """Return the fields of a snapshot that the registry knows.

        Raises:
            OutageError: It does not answer, or an empty one was put into its place.
        """
        file = self._identity()
        aliases, newest = self._registry.aliases()
        if not aliases and self._file not in (None, file):
            raise OutageError(
                f"The MLflow registry at {self._registry.settings.mlflow_uri} was replaced by an "
                "empty one; put back the one that was there."
            )
        if aliases:
            self._file = file
        return {"aliases": aliases, "newest": newest}

    def _identity(self) -> tuple[int, int] | None:
        file = sqlite_file(self._registry.settings)
        if file is None:
            return None
        try:
            found = file.stat()
        except OSError:  # which the reading itself says
            return None
        return found.st_dev, found.st_ino


class Watcher:
    """Reads a part of the snapshot at intervals, in a thread that nothing ends but `stop`.

    Args:
        name: Of what is read.
        read: Returns the present fields.
        changed: Is called in the thread with fields that differ from those before.
        failed: Is called in the thread with the name of each fault's class.
        seconds: From the end of one reading to the next.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], SnapshotFields],
        changed: Callable[[SnapshotFields], None],
        *,
        failed: Callable[[str], None] = lambda _: None,
        seconds: float = 1.0,
    ) -> None:
        self._name, self._read, self._changed, self._failed = name, read, changed, failed
        self._seconds = seconds
        self._stop = threading.Event()
        self._last: SnapshotFields | None = None
        self._read_at = time.monotonic()
        self._said: set[str] = set()
        self.fault: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch {name}", daemon=True)

    def start(self, first: SnapshotFields) -> None:
        """Begin, with fields that were just read, and that their user has already."""
        self._last, self._read_at = first, time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End; the reading that is under way is waited for, but not for long."""
        self._stop.set()
        self._thread.join(_SECONDS_TO_END)

    @property
    def age(self) -> float:
        """Seconds since what is known was true: since the last reading that succeeded began."""
        return time.monotonic() - self._read_at

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            began = time.monotonic()
            try:
                fields = self._read()
                if fields != self._last:
                    self._changed(fields)
                    self._last = fields
            except Exception as error:  # noqa: BLE001 — of whatever kind it is, it is logged
                self._note(error)
                continue
            if self.fault is not None:
                log.warning("the %s answers again", self._name)
            self.fault, self._read_at = None, began
            self._said.clear()

    def _note(self, error: Exception) -> None:
        """Keep a fault, count it, and log it if it is the first of its kind since all was well."""
        self.fault = error
        self._failed(type(error).__name__)
        kind = f"{type(error).__name__}: {error}"
        if kind in self._said or len(self._said) >= _MAX_KINDS:
            return
        self._said.add(kind)
        log.error(
            "the %s cannot be read, and what it said last stays in force: %s",
            self._name,
            error if isinstance(error, EaglerayError) else kind,
            exc_info=None if isinstance(error, EaglerayError) else error,
        )
