"""The manifest: the list of a job's inputs, written before any work starts.

A row number is an input's identity: the same URI twice is two inputs with two results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.csv

from eagleray import storage
from eagleray.errors import InputError, UnknownNameError
from eagleray.storage import FileInfo

__all__ = [
    "MANIFEST_SCHEMA",
    "URI_COLUMNS",
    "build_manifest",
    "digest_table",
    "read_csv_table",
    "require_column",
    "resolve_beside",
]

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("version", pa.string(), nullable=False),
    ]
)

URI_COLUMNS = ("uri", "path", "file", "filename", "image", "url")
"""Column names that hold the image's location when the user names none, best first."""

_GLOB_CHARACTERS = frozenset("*?[")


def build_manifest(inputs: Sequence[str], *, column: str | None = None) -> pa.Table:
    """List a job's inputs.

    Args:
        inputs: Folders, glob patterns, CSV tables, or single images; local or any URI that fsspec
            opens. Hidden files (a leading `.` or `_` in the name, or in a folder below the one
            given) are not inputs.
        column: The CSV column that holds locations; None looks for the usual names.

    Returns:
        A table of `MANIFEST_SCHEMA` in the order given; rows count from 0.

    Raises:
        InputError: An input is not there, or holds nothing.
    """
    files = [file for location in inputs for file in _list_input(location, column)]
    return pa.table(
        {
            "row": pa.array(range(len(files)), pa.int64()),
            "uri": pa.array([file.uri for file in files], pa.string()),
            "size": pa.array([file.size for file in files], pa.int64()),
            "version": pa.array([file.version for file in files], pa.string()),
        },
        schema=MANIFEST_SCHEMA,
    )


def _list_input(location: str, column: str | None) -> list[FileInfo]:
    if location.lower().endswith(".csv") and not storage.is_folder(location):
        return _list_csv(location, column)
    if storage.is_folder(location):
        root = storage.absolute(location)
        found = [file for file in storage.list_files(root) if not _is_hidden(file.uri, root)]
        if not found:
            raise InputError(f"Folder {location} holds no files; name one that holds images.")
        return found
    if storage.exists(location):
        return [FileInfo(storage.absolute(location), None, "")]
    if _GLOB_CHARACTERS & set(location):
        found = storage.glob_files(location)
        if not found:
            raise InputError(f"No file matches the pattern {location}.")
        return found
    raise InputError(f"There is no folder or file {location}; check the path.")


def _is_hidden(uri: str, root: str) -> bool:
    """Whether the file, or a folder between it and the root, has a hidden name."""
    below = PurePosixPath(uri.removeprefix(root.rstrip("/") + "/"))
    return any(part.startswith((".", "_")) for part in below.parts)


def _list_csv(location: str, column: str | None) -> list[FileInfo]:
    table = read_csv_table(location)
    name = require_column(table, column, URI_COLUMNS, location, flag="--column")
    return [
        FileInfo(resolve_beside(location, uri), None, "") for uri in table.column(name).to_pylist()
    ]


# --- tables of paths, for batch and training alike ------------------------------------------------


def read_csv_table(location: str) -> pa.Table:
    """Read a CSV with a header; every column stays text.

    Raises:
        InputError: It is not there, is no CSV, or has no rows.
    """
    try:
        content = storage.read_bytes(location)
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None
    try:
        header = pyarrow.csv.open_csv(pa.BufferReader(content)).schema.names
        table = pyarrow.csv.read_csv(
            pa.BufferReader(content),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        fault = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{location} is not a CSV with a header ({fault}).") from None
    if table.num_rows == 0:
        raise InputError(f"{location} has a header and no rows.")
    return table


def require_column(
    table: pa.Table, wanted: str | None, usual: Iterable[str], where: str, *, flag: str
) -> str:
    """Return the name of a column: the wanted one, or the first of the usual names.

    Raises:
        InputError: It is not in the table.
    """
    names: list[str] = table.column_names
    if wanted is not None:
        if wanted not in names:
            raise UnknownNameError(
                f"column of {where}", wanted, names, hint=f"It has: {', '.join(names)}."
            )
        return wanted
    for name in usual:
        if name in names:
            return name
    raise InputError(
        f"{where} has no column named {' or '.join(usual)}; it has {', '.join(names)}. Name the "
        f"right one with {flag}."
    )


def resolve_beside(table_location: str, location: str) -> str:
    """Resolve a location in a table: relative ones are relative to the table's folder."""
    if storage.is_remote(location) or location.startswith("/"):
        return location
    parent = storage.absolute(table_location).rsplit("/", 1)[0]
    return storage.join(parent, location)


def digest_table(columns: Iterable[Sequence[object]]) -> str:
    """Return the SHA-256 of columns, row by row, with unambiguous separators."""
    hasher = hashlib.sha256()
    for row in _rows(columns):
        hasher.update(repr(row).encode())
        hasher.update(b"\n")
    return hasher.hexdigest()


def _rows(columns: Iterable[Sequence[object]]) -> Iterator[tuple[object, ...]]:
    return zip(*columns, strict=True)
