"""Locations as strings: local paths and URIs, made absolute, joined and named."""

from __future__ import annotations

from pathlib import Path

__all__ = ["absolute", "is_remote", "join", "name_of"]

_LOCAL_SCHEMES = ("file://", "local://")


def is_remote(location: str) -> bool:
    """Whether the location has a scheme other than `file` and its other name, `local`."""
    return "://" in location and not location.startswith(_LOCAL_SCHEMES)


def absolute(location: str) -> str:
    """Return a local path made absolute, and a URI unchanged."""
    if is_remote(location):
        return location
    path = location.removeprefix("file://").removeprefix("local://")
    # `~` and `~/…` are the user's home; `~name` is a file name like any other.
    return str(Path(path).expanduser() if path.split("/", 1)[0] == "~" else Path(path).absolute())


def join(location: str, *parts: str) -> str:
    """Append names to a location; the slashes of a scheme stay."""
    scheme, separator, path = location.rpartition("://")
    base = path.rstrip("/")
    if base or path.startswith("/"):
        parts = (base, *parts)
    return scheme + separator + "/".join(parts)


def name_of(location: str) -> str:
    """The last name of a location."""
    return location.rstrip("/").rsplit("/", 1)[-1]
