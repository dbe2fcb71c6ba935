"""Polls the registry and the database, so that changes there reach the running service.

Promotions, rollbacks, pins and revoked keys change only the registry or the database; every replica
reads both within a second or two. Each is read on its own, so a registry that does not answer does
not keep a revoked key valid. If one does not answer, its last state stays in force and its age is
reported. No error ends the polling.
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
from eagleray.serving.callers.applications import Applications
from eagleray.serving.versions.routes import Routes
from eagleray.serving.versions.routing import Snapshot

__all__ = [
    "DatabaseReader",
    "RegistryReader",
    "SnapshotFields",
    "SnapshotWatch",
    "Watcher",
    "read_snapshot",
]

log = logging.getLogger(__name__)

_SECONDS_TO_END = 5.0
_MAX_KINDS = 100  # distinct errors in a row that are logged

SnapshotFields = Mapping[str, Any]
"""Some fields of a `Snapshot`, by name."""


def read_snapshot(registry: Registry) -> Snapshot:
    """Read a whole snapshot.

    Raises:
        OutageError: If the registry or the database does not answer.
    """
    database = DatabaseReader(registry.history.database)
    return Snapshot(**{**RegistryReader(registry)(), **database()})


class DatabaseReader:
    """Reads applications, keys and routes.

    Args:
        database: The organisation's database.
        last_change: Number of the last known change to an application.
    """

    def __init__(self, database: OpenDatabase, *, last_change: int = 0) -> None:
        self._database, self._last_change = database, last_change

    def __call__(self) -> SnapshotFields:
        """Return the snapshot's fields that come from the database.

        Raises:
            OutageError: If the database does not answer.
            DatabaseReplacedError: If it is another database, or an earlier state of this one.
        """
        callers = Applications(self._database, actor="").read()
        if callers.last_change < self._last_change:
            place = self._database.database.place
            raise DatabaseReplacedError(
                f"The database {place} was restored to an earlier state, in which keys may be "
                "valid that were revoked since; restart the service if that is intended."
            )
        self._last_change = callers.last_change
        return {
            "routes": Routes(self._database, actor="").read(),
            "applications": callers.applications,
            "keys": callers.keys,
            "last_change": callers.last_change,
        }


class RegistryReader:
    """Reads the registered models and their aliases.

    Args:
        registry: The model registry.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._file: tuple[int, int] | None = None  # device and inode, when it had models

    def __call__(self) -> SnapshotFields:
        """Return the snapshot's fields that come from the registry.

        Raises:
            OutageError: If the registry does not answer, or an empty one replaced it.
        """
        file = self._identity()
        aliases, newest = self._registry.aliases()
        if not aliases and self._file not in (None, file):
            raise OutageError(
                f"The MLflow registry at {self._registry.settings.mlflow_uri} was replaced by an "
                "empty one; restore the one that was there."
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
        except OSError:  # reading the registry reports it
            return None
        return found.st_dev, found.st_ino


class Watcher:
    """Reads a part of the snapshot at intervals, in a thread that only `stop` ends.

    Args:
        name: Name of the part, for the log.
        read: Returns the current fields.
        on_change: Called in the thread with fields that differ from the last ones.
        on_failure: Called in the thread with the class name of each error.
        seconds: Seconds from the end of one reading to the next.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], SnapshotFields],
        on_change: Callable[[SnapshotFields], None],
        *,
        on_failure: Callable[[str], None] = lambda _: None,
        seconds: float = 1.0,
    ) -> None:
        self._name, self._read = name, read
        self._on_change, self._on_failure = on_change, on_failure
        self._seconds = seconds
        self._stop = threading.Event()
        self._last: SnapshotFields | None = None
        self._read_at = time.monotonic()
        self._logged: set[str] = set()
        self.fault: Exception | None = None
        """The error of the last reading; None if it succeeded."""
        self._thread = threading.Thread(target=self._run, name=f"watch {name}", daemon=True)

    def start(self, first: SnapshotFields) -> None:
        """Start, with fields that were just read and that their user has already."""
        self._last, self._read_at = first, time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Stop, waiting a few seconds at most for the reading in progress."""
        self._stop.set()
        self._thread.join(_SECONDS_TO_END)

    @property
    def age(self) -> float:
        """Seconds since the start of the last successful reading."""
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
                    self._on_change(fields)
                    self._last = fields
            except Exception as error:  # noqa: BLE001 — any error is logged, and polling continues
                self._record(error)
                continue
            if self.fault is not None:
                log.warning("the %s responds again", self._name)
            self.fault, self._read_at = None, began
            self._logged.clear()

    def _record(self, error: Exception) -> None:
        """Keep an error, count it, and log it if it is the first of its kind since a success."""
        self.fault = error
        self._on_failure(type(error).__name__)
        kind = f"{type(error).__name__}: {error}"
        if kind in self._logged or len(self._logged) >= _MAX_KINDS:
            return
        self._logged.add(kind)
        log.error(
            "the %s cannot be read, and its last state stays in force: %s",
            self._name,
            error if isinstance(error, EaglerayError) else kind,
            exc_info=None if isinstance(error, EaglerayError) else error,
        )


class SnapshotWatch:
    """Watches the database and the registry, each with a thread of its own.

    Args:
        database: The organisation's database.
        registry: The model registry.
        last_change: Number of the last known change to an application.
        on_change: Called in a thread with fields of the snapshot that have changed.
        on_failure: Called in a thread with `database` or `registry`, and the error's class name.
        seconds: Seconds from the end of one reading to the next.
    """

    def __init__(
        self,
        database: OpenDatabase,
        registry: Registry,
        *,
        last_change: int,
        on_change: Callable[[SnapshotFields], None],
        on_failure: Callable[[str, str], None],
        seconds: float,
    ) -> None:
        self._readers: dict[str, Callable[[], SnapshotFields]] = {
            "database": DatabaseReader(database, last_change=last_change),
            "registry": RegistryReader(registry),
        }

        def watcher(name: str) -> Watcher:
            def failed(kind: str) -> None:
                on_failure(name, kind)

            return Watcher(name, self._readers[name], on_change, on_failure=failed, seconds=seconds)

        self.database, self._registry = watcher("database"), watcher("registry")

    def read(self) -> dict[str, SnapshotFields]:
        """Read both parts for the first time, in the calling thread.

        Raises:
            OutageError: If the registry or the database does not answer.
            DatabaseReplacedError: If it is another database, or an earlier state of it.
        """
        return {name: read() for name, read in self._readers.items()}

    def start(self, first: Mapping[str, SnapshotFields]) -> None:
        """Start both threads, with the fields that `read` returned."""
        self.database.start(first["database"])
        self._registry.start(first["registry"])

    def stop(self) -> None:
        """Stop both threads."""
        self.database.stop()
        self._registry.stop()

    @property
    def age(self) -> float:
        """Seconds since the older of the two last successful readings."""
        return max(self.database.age, self._registry.age)

    @property
    def alive(self) -> bool:
        """Whether both threads run."""
        return self.database.alive and self._registry.alive
