"""Registries of named values that packages outside Eagleray can add to.

    TASKS: Extensions[type[Task]] = Extensions("task")
    TASKS.register("binary", Binary)
    TASKS.get("ordinal")        imports the modules of the entry points, which register more

A distribution names its modules as entry points of the group `eagleray.extensions`:

    [project.entry-points."eagleray.extensions"]
    ordinal = "my_package.ordinal"

A user names modules that are not installed as a distribution in the setting `EAGLERAY_EXTENSIONS`.

Importing such a module registers what it brings. Modules are imported once in a process, when
a name is wanted that is not registered yet. So every process finds extensions by itself: a command,
a Ray worker, a replica of the service.

    load_object("my_losses:Tversky")    an object of such a module, by its import path

No other module is imported by a name from a specification or from a model package.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.settings import read_settings

__all__ = ["ENTRY_POINT_GROUP", "Extensions", "is_import_path", "load_extensions", "load_object"]

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
    """Import the modules of all entry points and of the user's setting, once in a process.

    Raises:
        InputError: If one of them cannot be imported, naming where it comes from.
    """
    with _lock:
        for point in entry_points(group=ENTRY_POINT_GROUP):
            origin = point.dist.name if point.dist is not None else point.value
            _import_once(
                f"{point.name} = {point.value}",
                point.load,
                f"extension {point.name!r} of the package {origin}",
                "fix or uninstall it",
            )
        for module in read_settings().extension_modules:
            _import_once(
                module,
                functools.partial(importlib.import_module, module),
                f"module {module} of EAGLERAY_EXTENSIONS",
                "fix it, and put its folder on PYTHONPATH",
            )
    if _failures:
        raise InputError(_failures[0])


def _import_once(key: str, load: Callable[[], object], name: str, remedy: str) -> None:
    if key in _loaded:
        return
    _loaded.add(key)  # first, as the module may look up a name itself
    try:
        load()
    except Exception as error:  # noqa: BLE001 - a module of others may raise anything
        _failures.append(
            f"The {name} cannot be imported ({type(error).__name__}: {error}); {remedy}."
        )


def is_import_path(name: str) -> bool:
    """Whether a name is an import path, `module:object`."""
    return ":" in name


def load_object(path: str) -> Any:
    """Return a public object of an extension's module by its import path.

    Args:
        path: The path, such as `my_losses:Tversky`; it may come from an untrusted model package.

    Raises:
        InputError: If the module is not an extension, or cannot be imported.
        UnknownNameError: If the module has no such object; the message gives the nearest names.
    """
    module, _, name = path.partition(":")
    allowed = {point.module for point in entry_points(group=ENTRY_POINT_GROUP)}
    if module not in allowed.union(read_settings().extension_modules):
        raise InputError(
            f"{path} is in the module {module!r}, which is not an extension here, so it is not "
            f"imported; if this is your own code, set EAGLERAY_EXTENSIONS={module}, with its "
            "folder on PYTHONPATH."
        )
    load_extensions()
    found = vars(sys.modules[module])
    if name.startswith("_") or name not in found:
        public = [one for one in found if not one.startswith("_")]
        raise UnknownNameError(f"object of the module {module}", name, public)
    return found[name]
