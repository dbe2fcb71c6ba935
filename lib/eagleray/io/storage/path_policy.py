"""Whether a location is under one of some places, however it is spelled."""

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

# Some file systems take these out of a URI, and two dots with a tab between them are then two dots.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# No file system opens a longer path, and following one would take its time; of a name that is not
# UTF-8 each byte is spelled out in four characters.
_MAX_CHARACTERS = 4 * 4096
_MAX_ENCODINGS = 4


@dataclass(frozen=True)
class PathPolicy:
    """Which locations may be read: all of them, or those under some places.

    A location is judged by its text and, where it is local, by where its links lead. Nothing is
    opened for it, so the verdict says nothing of what is there.

    Attributes:
        places: Folders, and prefixes of URIs; None where every location may be read.
    """

    places: tuple[str, ...] | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is a location that may not be read."""
        return self.places is not None

    def allows(self, location: str) -> bool:
        """Whether a path, a URI or a pattern may be read, as `is_within` judges it."""
        return self.places is None or _is_in(location, self._resolved)

    @cached_property
    def _resolved(self) -> tuple[str, ...]:
        return tuple(map(_resolve, self.places or ()))


def require_prefix(place: str) -> None:
    """Refuse what cannot be a place: it would stand for another one than was meant.

    Raises:
        InputError: It is empty, leads up, is of a scheme that is not supported, or names no bucket.
    """
    if not place.strip():
        raise InputError("A place is empty; name a folder, or a prefix such as s3://bucket/photos.")
    if not is_remote(place):
        return
    require_scheme(place)
    if not place.partition("://")[2].strip("/"):
        raise InputError(f"{place} names no bucket; write {place.rstrip('/')}//BUCKET/….")
    if not is_within(place, [place]):
        raise InputError(f"{place} leads somewhere else by its '..'; write where that is.")


def is_within(location: str, places: Iterable[str]) -> bool:
    """Whether a location is one of some places, or under one.

    Local paths are judged by where they lead: `..` and symbolic links are followed first. A URI
    must begin as the place does, letter by letter, and hold no `..`, not even percent-encoded: what
    a file system would make of it is its own affair. A chain of several (`zip://…::…`) is nowhere.

    Args:
        location: A path, a URI, or a pattern.
        places: Folders, or prefixes that end with a `/` or where one would follow.
    """
    return _is_in(location, map(_resolve, places))


def _resolve(place: str) -> str:
    return place if is_remote(place) else os.path.realpath(local_path(place))


def _is_in(location: str, places: Iterable[str]) -> bool:
    """Judge a location by places whose links are followed already."""
    if "\0" in location or len(location) > _MAX_CHARACTERS or not _is_unicode(location):
        return False
    remote = is_remote(location)
    if remote and (_is_chain(location) or _CONTROL.search(location) or _leads_up(location)):
        return False
    target = location if remote else os.path.realpath(local_path(location))
    return any(is_remote(place) == remote and _is_under(target, place) for place in places)


def _is_chain(location: str) -> bool:
    return "::" in location


def _leads_up(location: str) -> bool:
    """Whether a part of a URI is `..`, also one that is percent-encoded several times."""
    text = location
    for _ in range(_MAX_ENCODINGS):
        decoded = unquote(text)
        if decoded == text:
            return ".." in text.replace("\\", "/").split("/")
        text = decoded
    return True  # nobody encodes a name that often


def _is_unicode(text: str) -> bool:
    """Whether a text can be a name; half of a surrogate pair, as JSON may hold it, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_under(location: str, place: str) -> bool:
    place = place.rstrip("/")
    return location.rstrip("/") == place or location.startswith(f"{place}/")
