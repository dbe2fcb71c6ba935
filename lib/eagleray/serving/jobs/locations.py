"""Checks that inputs are there, and hides locations of the service in what callers are told."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from eagleray.core.errors import InputError, OutageError
from eagleray.io import storage
from eagleray.io.fetch import packing_of
from eagleray.serving.problems import hide_locations

__all__ = ["NOT_AVAILABLE", "hiding_locations", "require_there"]

log = logging.getLogger(__name__)

NOT_AVAILABLE = "The output of this job is not available now; try again later."
_GLOB_CHARACTERS = frozenset("*?[")


@contextlib.contextmanager
def hiding_locations(shown: Sequence[str]) -> Iterator[None]:
    """Hide locations other than the caller's own in errors of storage.

    Args:
        shown: Locations that the caller has named.

    Raises:
        OutageError: If the storage does not respond.
        InputError: As raised, without the hidden locations.
    """
    try:
        yield
    except OSError as error:
        raise OutageError(f"A location is not available: {error}.", public=NOT_AVAILABLE) from error
    except InputError as error:
        words = hide_locations(str(error), shown)
        if words == str(error):
            raise
        log.warning("a job is refused: %s", error)
        raise type(error)(words) from error


def require_there(location: str) -> None:
    """Refuse a missing input; patterns and members of archives are checked by the job.

    Raises:
        InputError: If it is missing.
        OSError: If the storage does not respond.
    """
    elsewhere = location.lower().startswith(("http://", "https://")) or packing_of(location)
    if not elsewhere and not _GLOB_CHARACTERS & set(location) and not storage.exists(location):
        raise InputError(f"There is no folder or file {location}; check the path.")
