"""Tables as users bring them: a CSV with a column of locations, and the digest of any table.

A location in a table is a URI, an absolute path, or a path relative to the table's own folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.csv

from eagleray import storage
from eagleray.errors import InputError, UnknownNameError

__all__ = ["URI_COLUMNS", "digest_table", "read_csv_table", "require_column", "resolve_beside"]

URI_COLUMNS = ("uri", "path", "file", "filename", "image", "url")
"""Column names that hold the image's location when the user names none, best first."""


def read_csv_table(location: str) -> pa.Table:
    """Read a CSV with a header; every column stays text.

    Raises:
        InputError: It is not there, is no CSV, or has no rows.
    """
    try:
        content = storage.read_bytes(location)
    except FileNotFoundError:
        raise InputError(f"Cannot read {location}: there is no such file.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    try:
        header = pyarrow.csv.open_csv(pa.BufferReader(content), parse_options=options).schema.names
        table = pyarrow.csv.read_csv(
            pa.BufferReader(content),
            parse_options=options,
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
            ),
        )
    except UnicodeDecodeError:
        raise InputError(
            f"{location} is not a CSV with a header in UTF-8; save it in that encoding."
        ) from None
    except pa.ArrowInvalid as error:
        fault = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{location} is not a CSV with a header ({fault}).") from None
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise InputError(f"{location} has more than one column named {doubled[0]!r}; rename one.")
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
    if "://" in location or location.startswith("/"):
        return location
    parent = storage.absolute(table_location).rsplit("/", 1)[0]
    return storage.join(f"{parent}/", location)


def digest_table(columns: Iterable[Sequence[object]]) -> str:
    """Return the SHA-256 of columns, row by row, with unambiguous separators."""
    hasher = hashlib.sha256()
    for row in zip(*columns, strict=True):
        hasher.update(repr(row).encode())
        hasher.update(b"\n")
    return hasher.hexdigest()
