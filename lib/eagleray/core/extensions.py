"""Registries of named values that packages outside Eagleray can add to.

    TASKS: Extensions[type[Task]] = Extensions("task")
    TASKS.register("binary", Binary)
    TASKS.get("ordinal")        imports the modules of the entry points, which register more

A distribution names its modules as entry points of the group `eagleray.extensions`:

    [project.entry-points."eagleray.extensions"]
    ordinal = "my_package.ordinal"

Importing such a module registers what it brings. Entry points are imported once in a process, when
a name is wanted that is not registered yet. So every process finds extensions by itself: a command,
a Ray worker, a replica of the service.
"""

from __future__ import annotations

import threading
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from eagleray.core.errors import InputError, UnknownNameError

__all__ = ["ENTRY_POINT_GROUP", "Extensions", "load_extensions"]

T = TypeVar("T")

ENTRY_POINT_GROUP = "eagleray.extensions"


class Extensions(Generic[T]):
    """Values by name, those of Eagleray first and those of entry points when they are wanted.

    Args:
        kind: What the values are, in the singular, for messages: `task`, `source`, `sink`.
        hint: A sentence that follows "No … is named …".
    """

    def __init__(self, kind: str, *, hint: str = "") -> None:
        self.kind = kind
        self._hint = hint
        self._values: dict[str, T] = {}

    def register(self, name: str, value: T) -> None:
        """Make a value known under a name.

        Raises:
            ValueError: If another value has the name.
        """
        if self._values.setdefault(name, value) is not value:
            raise ValueError(f"there is another {self.kind} named {name!r}")

    def registered(self, name: str) -> T | None:
        """Return the value of a name without importing extensions; None if no value has it."""
        return self._values.get(name)

    def find(self, name: str) -> T | None:
        """Return the value of a name, or None if no value has it.

        Raises:
            InputError: If an extension cannot be imported.
        """
        if name not in self._values:
            load_extensions()
        return self._values.get(name)

    def get(self, name: str) -> T:
        """Return the value of a name.

        Raises:
            UnknownNameError: If no value has the name; the message gives the nearest names.
            InputError: If an extension cannot be imported.
        """
        value = self.find(name)
        if value is None:
            raise UnknownNameError(self.kind, name, self._values, hint=self._hint)
        return value

    def names(self) -> tuple[str, ...]:
        """Return all names, in the order of registration.

        Raises:
            InputError: If an extension cannot be imported.
        """
        load_extensions()
        return tuple(self._values)


_lock = threading.RLock()
_loaded: set[str] = set()
_failures: list[str] = []


def load_extensions() -> None:
    """Import the modules of all entry points, once in a process.

    Raises:
        InputError: If one of them cannot be imported, naming the distribution.
    """
    with _lock:
        for point in entry_points(group=ENTRY_POINT_GROUP):
            key = f"{point.name} = {point.value}"
            if key in _loaded:
                continue
            _loaded.add(key)  # first, as the module may look up a name itself
            try:
                point.load()
            except Exception as error:  # noqa: BLE001 - a module of others may raise anything
                origin = point.dist.name if point.dist is not None else point.value
                _failures.append(
                    f"The extension {point.name!r} of the package {origin} cannot be imported "
                    f"({type(error).__name__}: {error}); fix or uninstall it."
                )
    if _failures:
        raise InputError(_failures[0])
