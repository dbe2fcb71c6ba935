"""The manifest: the list of a job's inputs, written before any work starts.

A row number is an input's identity: the same URI twice is two inputs with two results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import pyarrow as pa

from eagleray import storage
from eagleray.errors import InputError
from eagleray.storage import FileInfo
from eagleray.tables import URI_COLUMNS, read_csv_table, require_column, resolve_beside

__all__ = ["MANIFEST_SCHEMA", "build_manifest"]

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("version", pa.string(), nullable=False),
    ]
)

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
        return [storage.file_info(location)]
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
        storage.file_info(resolve_beside(location, uri)) for uri in table.column(name).to_pylist()
    ]
