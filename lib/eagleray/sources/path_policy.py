"""Checks inputs against the locations that a job may read, for jobs of callers of the service.

Locations that a user names, a folder holds or a table lists are checked before they are opened, so
that a refusal does not tell whether something is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pyarrow as pa

from eagleray.core.errors import InputError
from eagleray.io.fetch import ImageSource, may_read
from eagleray.io.fetch.source import describe_inline_image
from eagleray.io.storage import PathPolicy
from eagleray.sources.listing import LISTING_SCHEMA, Listing

__all__ = ["check_files", "require_readable", "restrict_listing"]

_FIELDS = ("uri", "packing", "container")
_PLACES = tuple(LISTING_SCHEMA.get_field_index(name) for name in _FIELDS)
_MAX_SHOWN = 300  # characters of a location


def require_readable(locations: Iterable[str], policy: PathPolicy) -> None:
    """Refuse locations that a user names and a job may not read.

    Raises:
        InputError: If one of them is elsewhere.
    """
    for location in locations:
        # An empty one is the working folder here, and nothing in a table.
        if not (policy.allows("") if not location else may_read(ImageSource(location), policy)):
            raise _outside("An input", location, policy)


def check_files(files: Iterator[pa.Table], location: str, policy: PathPolicy) -> Iterator[pa.Table]:
    """Pass on the files of a folder or a pattern if all of them may be read.

    Args:
        files: Tables of files, as storage lists them.
        location: The folder or pattern, for the message.
        policy: Path policy of the job.

    Raises:
        InputError: If a file may not be read; raised while the tables are read.
    """
    for table in files:
        if policy.is_limited:
            for uri in table.column("uri").to_pylist():
                if not policy.allows(uri):
                    raise _outside(f"A file of {location}", uri, policy)
        yield table


def restrict_listing(listing: Listing, policy: PathPolicy) -> Listing:
    """Restrict a listing to locations that may be read.

    A table that may be read may name any other location. http(s) addresses are left to the URL
    policy.

    Args:
        listing: The inputs.
        policy: Path policy of the job.

    Returns:
        The same inputs; while they are read, the first one outside raises an `InputError`.
    """
    if not policy.is_limited:
        return listing
    return replace(listing, tables=_checked(listing.tables, policy))


def _checked(tables: Iterator[pa.Table], policy: PathPolicy) -> Iterator[pa.Table]:
    num_before = 0
    for table in tables:
        # By position: the user's own columns may have names of ours.
        columns = [table.column(place).to_pylist() for place in _PLACES]
        known: str | None = None  # a container has many rows that follow one another
        for number, (uri, packing, container) in enumerate(zip(*columns, strict=True)):
            if packing is not None and container == known:
                continue
            if not _may_stay(ImageSource(uri, packing=packing, container=container), policy):
                location = uri if packing is None else container
                raise _outside(f"Input {num_before + number}", location, policy)
            known = container if packing is not None else None
        num_before += table.num_rows
        yield table


def _may_stay(source: ImageSource, policy: PathPolicy) -> bool:
    """Whether an input may be read, or is an image in base64, which its own row then says."""
    if may_read(source, policy):
        return True
    return source.packing is None and describe_inline_image(source.uri) is not None


def _outside(what: str, location: str, policy: PathPolicy) -> InputError:
    shown = location if len(location) <= _MAX_SHOWN else f"{location[:_MAX_SHOWN]}…"
    return InputError(
        f"{what} is {shown}, which is outside the locations that this job may read: "
        f"{', '.join(policy.prefixes or ())}."
    )
