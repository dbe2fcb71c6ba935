"""Decides whether a location lies under allowed prefixes, however it is spelled."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote

from eagleray.core.errors import InputError
from eagleray.io.storage.locations import is_remote, local_path, require_scheme

__all__ = ["PathPolicy", "is_within", "require_prefix"]

# Some file systems drop these from a URI, which turns two dots with a tab between them into `..`.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# No file system opens a longer path, and resolving one would take long. A byte that is not UTF-8 is
# escaped with four characters.
_MAX_LENGTH = 4 * 4096
_MAX_ENCODINGS = 4


@dataclass(frozen=True)
class PathPolicy:
    """Which locations may be read: all of them, or those under allowed prefixes.

    A location is checked by its text and, if it is local, by where its links lead. Nothing is
    opened, so the result reveals nothing about what exists.

    Attributes:
        prefixes: Folders and URI prefixes; None if every location may be read.
    """

    prefixes: tuple[str, ...] | None = None

    @property
    def is_limited(self) -> bool:
        """Whether some locations may not be read."""
        return self.prefixes is not None

    def allows(self, location: str) -> bool:
        """Whether a path, a URI or a pattern may be read, as `is_within` decides it."""
        return self.prefixes is None or _is_within_resolved(location, self._resolved)

    @cached_property
    def _resolved(self) -> tuple[str, ...]:
        return tuple(map(_resolve, self.prefixes or ()))


def require_prefix(prefix: str) -> None:
    """Check that a text can be an allowed prefix.

    Raises:
        InputError: If it is empty, contains `..`, names no bucket, or its scheme is not supported.
    """
    if not prefix.strip():
        raise InputError(
            "An allowed path is empty; name a folder, or a prefix such as s3://bucket/photos."
        )
    if not is_remote(prefix):
        return
    require_scheme(prefix)
    if not prefix.partition("://")[2].strip("/"):
        raise InputError(f"{prefix} names no bucket; write {prefix.rstrip('/')}//BUCKET/….")
    if not is_within(prefix, [prefix]):
        raise InputError(f"{prefix} contains '..'; write the resolved location.")


def is_within(location: str, prefixes: Iterable[str]) -> bool:
    """Whether a location equals one of several prefixes or lies under one.

    Local paths are resolved first, with `..` and symbolic links. A URI must start with the prefix,
    character by character, and contain no `..`, not even percent-encoded, as file systems interpret
    it differently. A chained URI (`zip://…::…`) is never within a prefix.

    Args:
        location: A path, a URI or a pattern.
        prefixes: Folders and URI prefixes, with or without a trailing slash.
    """
    return _is_within_resolved(location, map(_resolve, prefixes))


def _resolve(prefix: str) -> str:
    return prefix if is_remote(prefix) else os.path.realpath(local_path(prefix))


def _is_within_resolved(location: str, prefixes: Iterable[str]) -> bool:
    if "\0" in location or len(location) > _MAX_LENGTH or not _is_unicode(location):
        return False
    remote = is_remote(location)
    if remote and (
        "::" in location or _CONTROL.search(location) or _has_parent_reference(location)
    ):
        return False
    target = location if remote else os.path.realpath(local_path(location))
    return any(is_remote(prefix) == remote and _has_prefix(target, prefix) for prefix in prefixes)


def _has_parent_reference(location: str) -> bool:
    """Whether a component of a URI is `..`, even if it is percent-encoded several times."""
    text = location
    for _ in range(_MAX_ENCODINGS):
        decoded = unquote(text)
        if decoded == text:
            return ".." in text.replace("\\", "/").split("/")
        text = decoded
    return True  # no legitimate name is encoded that often


def _is_unicode(text: str) -> bool:
    """Whether a text is valid Unicode; a lone surrogate, as JSON may contain it, is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_prefix(location: str, prefix: str) -> bool:
    prefix = prefix.rstrip("/")
    return location.rstrip("/") == prefix or location.startswith(f"{prefix}/")
