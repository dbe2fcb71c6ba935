"""Whether a location is under one of some places, however it is spelled."""

from __future__ import annotations

import os
from collections.abc import Iterable
from urllib.parse import unquote

from eagleray.storage.locations import is_remote, local_path

__all__ = ["is_within"]


def is_within(location: str, places: Iterable[str]) -> bool:
    """Whether a location is one of some places, or under one.

    Local paths are judged by where they lead: `..` and symbolic links are followed first. A URI
    must begin as the place does, letter by letter, and hold no `..`, not even percent-encoded: what
    a file system would make of it is its own affair.

    Args:
        location: A path, a URI, or a pattern.
        places: Folders, or prefixes that end with a `/` or where one would follow.
    """
    if "\0" in location or not _is_unicode(location):
        return False
    remote = is_remote(location)
    candidates = [place for place in places if is_remote(place) == remote]
    if not remote:
        real = os.path.realpath(local_path(location))
        return any(_is_under(real, os.path.realpath(local_path(place))) for place in candidates)
    if "::" in location or ".." in _decoded(location).replace("\\", "/").split("/"):
        return False
    return any(_is_under(location, place) for place in candidates)


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


def _decoded(text: str) -> str:
    """Take percent-encodings away, also those of percent signs."""
    while (once := unquote(text)) != text:
        text = once
    return text
