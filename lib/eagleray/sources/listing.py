"""Defines what inputs are listed from and into: the request, an opened source, and its rows."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import pyarrow as pa

from eagleray.core.errors import InputError
from eagleray.core.file_names import escape_file_name
from eagleray.io import storage
from eagleray.io.fetch import ImageSource
from eagleray.io.storage import FileInfo, PathPolicy
from eagleray.sources.skipped import SkippedFiles

__all__ = [
    "LISTING_SCHEMA",
    "ROWS_AT_ONCE",
    "InputSpec",
    "Listing",
    "OpenedSource",
    "describe_file",
    "listing_of_files",
    "listing_of_sources",
    "packed_version",
    "require_file",
    "with_user_columns",
]

LISTING_SCHEMA = pa.schema(
    [
        *storage.LISTING_SCHEMA,
        pa.field("packing", pa.string()),
        pa.field("container", pa.string()),
        pa.field("offset", pa.int64()),
    ]
)
"""The columns of every input, as `ImageSource` describes them.

`version` changes when the content changes. It is empty where finding out would cost a request for
each image.
"""

ROWS_AT_ONCE = 8192
"""Maximum number of rows of a table in a stream."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The inputs that a user names.

    Attributes:
        locations: Folders, glob patterns, images, archives and tables, local or in an object store.
        column: Column of tables that holds locations or image bytes; None looks for it.
        policy: Locations that may be read.
        unpack: Whether archives and Parquet files found in folders are opened; otherwise they are
            listed like any file.
    """

    locations: tuple[str, ...]
    column: str | None = None
    policy: PathPolicy = field(default_factory=PathPolicy)
    unpack: bool = True


@dataclass(frozen=True, slots=True)
class Listing:
    """The inputs.

    Attributes:
        user_schema: The user's own columns, in order; all may be null.
        tables: Rows in the order of the inputs: the columns of `LISTING_SCHEMA`, then the user's
            own. Columns of both may have the same name, so they are told apart by position. The
            iterator can be read once, and raises `InputError` for what shows only while listing.
        notes: Sentences on what was decided for the user.
        skipped: Files that are not inputs; complete when the tables were read.
        root: As in `OpenedSource`; None for several locations.
        byte_columns: Columns of tables that hold bytes and are not among the user's.
    """

    user_schema: pa.Schema
    tables: Iterator[pa.Table]
    notes: tuple[str, ...] = ()
    skipped: SkippedFiles = field(default_factory=SkippedFiles)
    root: str | None = None
    byte_columns: tuple[str, ...] = ()

    def all_notes(self) -> tuple[str, ...]:
        """Return the sentences for the user, complete when the tables were read."""
        skipped = self.skipped.describe()
        return self.notes if skipped is None else (*self.notes, skipped)


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """One location that was opened.

    Attributes:
        where: The location, for messages.
        user_schema: The user's own columns in it.
        tables: Rows as in `Listing`, with the columns of this location.
        nothing: Sentence for a location without rows.
        notes: Tables, each with what was decided in reading it.
        root: Text that the images' URIs begin with and their paths in the location follow; None
            for tables, whose images may be anywhere.
        byte_columns: As in `Listing`.
    """

    where: str
    user_schema: pa.Schema
    tables: Iterator[pa.Table]
    nothing: str
    notes: tuple[tuple[str, str], ...] = ()
    root: str | None = None
    byte_columns: tuple[str, ...] = ()

    @classmethod
    def single(cls, row: pa.Table) -> Self:
        """Return a source of one image."""
        where: str = row.column("uri")[0].as_py()
        root = where.removesuffix(storage.name_of(where))
        return cls(where, pa.schema([]), iter([row]), f"{where} holds no image.", root=root)


def require_file(location: str) -> None:
    """Refuse a location at which there is nothing.

    Raises:
        InputError: If nothing is there.
    """
    if not storage.exists(location):
        raise InputError(f"There is no folder or file {location}; check the path.")


def describe_file(location: str) -> FileInfo:
    """Describe a file that the user named; a remote one is worth a request."""
    if storage.is_remote(location):
        with contextlib.suppress(InputError):  # reading may be allowed where listing is not
            for info in storage.glob_files(glob.escape(location)):
                return info
    return storage.file_info(location)


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
