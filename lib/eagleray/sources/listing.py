"""The values that listing is made of: what is asked for, a place that was opened, and its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from eagleray.core.file_names import escape_file_name
from eagleray.io.fetch import ImageSource
from eagleray.io.storage import PathPolicy
from eagleray.sources.skipped import SkippedFiles

__all__ = [
    "LISTING_SCHEMA",
    "ROWS_AT_ONCE",
    "InputSpec",
    "Listing",
    "Source",
    "listing_of_files",
    "listing_of_sources",
    "packed_version",
    "with_user_columns",
]

LISTING_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("version", pa.string(), nullable=False),
        pa.field("packing", pa.string()),
        pa.field("container", pa.string()),
        pa.field("offset", pa.int64()),
    ]
)
"""The columns of every input, as `ImageSource` describes them.

`version` is what changes when the content changes; empty where finding out would cost a request
for each image.
"""

ROWS_AT_ONCE = 8192
"""Rows of a table in a stream, at most."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a user names as inputs.

    Attributes:
        locations: Folders, glob patterns, images, archives and tables, local or in an object store.
        column: Of tables: the one that holds locations, or image bytes; None looks for it.
        policy: Which locations may be read.
    """

    locations: tuple[str, ...]
    column: str | None = None
    policy: PathPolicy = field(default_factory=PathPolicy)


@dataclass(frozen=True, slots=True)
class Listing:
    """The inputs.

    Attributes:
        user_schema: The user's own columns, in order; all may be null.
        tables: Rows in the order of the inputs: the columns of `LISTING_SCHEMA`, then the user's
            own. Those may have names that ours have too, so they are told apart by position.
            It can be read once, and raises `InputError` for what shows only while listing.
        notes: What was decided for the user, in sentences.
        skipped: Files that are no inputs; complete when the tables were read.
    """

    user_schema: pa.Schema
    tables: Iterator[pa.Table]
    notes: tuple[str, ...] = ()
    skipped: SkippedFiles = field(default_factory=SkippedFiles)

    def all_notes(self) -> tuple[str, ...]:
        """Return what the user should be told once the tables were read, in sentences."""
        skipped = self.skipped.describe()
        return self.notes if skipped is None else (*self.notes, skipped)


@dataclass(frozen=True, slots=True)
class Source:
    """One place that was opened.

    Attributes:
        where: Its location, for messages.
        user_schema: The user's own columns in it.
        tables: As in `Listing`, with the columns of this place.
        nothing: What to say when there are no rows.
        notes: What was decided in reading each table: the table, and the words.
    """

    where: str
    user_schema: pa.Schema
    tables: Iterator[pa.Table]
    nothing: str
    notes: tuple[tuple[str, str], ...] = ()


def listing_of_files(uri: pa.Array, size: pa.Array, version: pa.Array) -> pa.Table:
    """Make rows for files that are images of their own."""
    empty = (pa.nulls(len(uri), LISTING_SCHEMA.field(index).type) for index in range(3, 6))
    return pa.table([uri, size, version, *empty], schema=LISTING_SCHEMA)


def listing_of_sources(sources: Sequence[ImageSource], versions: Sequence[str]) -> pa.Table:
    """Make rows for images that may be packed.

    Names that are not UTF-8 are spelled out, as `escape_file_name` does.
    """
    columns = {
        "uri": [escape_file_name(source.uri) for source in sources],
        "size": [source.size for source in sources],
        "version": versions,
        "packing": [source.packing for source in sources],
        "container": [
            source.container and escape_file_name(source.container) for source in sources
        ],
        "offset": [source.offset for source in sources],
    }
    return pa.table(columns, schema=LISTING_SCHEMA)


def packed_version(container_version: str, offset: int | None) -> str:
    """Return the version of a packed image: its container's, and its place."""
    return f"{container_version}:{offset}" if container_version else ""


def with_user_columns(listing: pa.Table, user: pa.Table) -> pa.Table:
    """Put the user's own columns behind ours."""
    schema = pa.schema([*LISTING_SCHEMA, *user.schema])
    return pa.table([*listing.columns, *user.columns], schema=schema)
