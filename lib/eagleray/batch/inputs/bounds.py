"""Inputs that must lie where a job may read: for jobs of callers of little trust."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from eagleray import storage
from eagleray.batch.inputs.listing import LISTING_SCHEMA, Listing
from eagleray.errors import InputError

__all__ = ["keep_within"]

_URI, _CONTAINER = (LISTING_SCHEMA.get_field_index(name) for name in ("uri", "container"))
_FETCHED = ("http://", "https://")


def keep_within(listing: Listing, places: Sequence[str]) -> Listing:
    """Refuse a listing that names a location outside of some places.

    A table in such a place may name any other location, and a folder may hold links to others.
    http(s) addresses are the URL policy's to judge.

    Args:
        listing: Of the inputs.
        places: Prefixes.

    Returns:
        The same inputs; while they are read, the first one outside raises an `InputError`.
    """
    return replace(listing, tables=_checked(listing.tables, places))


def _checked(tables: Iterator[pa.Table], places: Sequence[str]) -> Iterator[pa.Table]:
    num_before = 0
    for table in tables:
        # By position: the user's own columns may have names of ours.
        pairs = zip(
            table.column(_URI).to_pylist(), table.column(_CONTAINER).to_pylist(), strict=True
        )
        known = ""  # a container has many rows that follow one another
        for number, (uri, container) in enumerate(pairs):
            location = container or uri
            if location == known or location.lower().startswith(_FETCHED):
                continue
            if not storage.is_within(location, places):
                raise InputError(
                    f"Input {num_before + number} is {location}, which is not where this job may "
                    f"read: {', '.join(places)}."
                )
            known = location
        num_before += table.num_rows
        yield table
