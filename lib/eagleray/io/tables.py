"""Reads tables in CSV, TSV, JSON lines and Parquet, and computes the digest of any table.

A location in a table is a URI, an absolute path, or a path relative to the table's own folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.io import storage
from eagleray.io.csv_table import CsvTable, TsvTable
from eagleray.io.json_lines import JsonLinesTable
from eagleray.io.parquet_table import ParquetTable
from eagleray.io.table_file import GZIP, TableFile

__all__ = [
    "TABLE_EXTENSIONS",
    "URI_COLUMNS",
    "TableFile",
    "beside",
    "digest_table",
    "find_usual",
    "open_table",
    "require_column",
    "texts_of",
]

URI_COLUMNS = ("uri", "path", "file", "filename", "image", "url")
"""Column names that hold the image's location when the user names none, best first.

Spaces around them and the case of letters do not matter.
"""


def open_table(location: str, *, may_be_empty: bool = False) -> TableFile:
    """Open a table by its extension; a file of any other is taken for a CSV.

    A text that ends in `.gz` is unpacked while it is read.

    Args:
        location: Location of the file.
        may_be_empty: Whether a table without rows is allowed.

    Raises:
        InputError: If it is not there, is not a table of a known format, has two columns of one
            name, or no rows.
    """
    lower = location.lower().removesuffix(GZIP)
    kinds = (extension for extension in _KINDS if lower.endswith(extension))
    table = _KINDS[next(kinds, ".csv")](location)
    names = table.schema.names
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"{location} has more than one column named {doubled[0]!r}; rename one.")
    if table.num_rows == 0 and not may_be_empty:
        raise InputError(f"{location} has {'a header and ' * bool(names)}no rows.")
    return table


_KINDS: dict[str, type[CsvTable | JsonLinesTable | ParquetTable]] = {
    ".csv": CsvTable,
    ".tsv": TsvTable,
    ".jsonl": JsonLinesTable,
    ".ndjson": JsonLinesTable,
    ".parquet": ParquetTable,
    ".pq": ParquetTable,
}

_TEXTS = tuple(extension for extension, kind in _KINDS.items() if kind is not ParquetTable)

TABLE_EXTENSIONS = (*_KINDS, *(extension + GZIP for extension in _TEXTS))
"""Extensions of files that are tables, lower-case."""


# --- columns, locations, digests ---------------------------------------------------------------


def require_column(
    table: pa.Table, wanted: str | None, usual: Iterable[str], where: str, *, flag: str
) -> str:
    """Return the name of a column: the wanted one, or the first of the usual names.

    Raises:
        InputError: If it is not in the table.
    """
    names: list[str] = table.column_names
    if wanted is not None:
        if wanted not in names:
            raise UnknownNameError(
                f"column of {where}", wanted, names, hint=f"It has: {', '.join(names)}."
            )
        return wanted
    found = find_usual(names, usual)
    if found:
        return found[0]
    raise InputError(
        f"{where} has no column named {' or '.join(usual)}; it has {', '.join(names)}. Name the "
        f"right one with {flag}."
    )


def find_usual(names: Sequence[str], usual: Iterable[str]) -> list[str]:
    """Return the columns that have one of the usual names, in the order of those.

    Spaces around a name and the case of its letters do not matter, and matter only where two
    columns differ in nothing else.
    """
    found = []
    for wanted in usual:
        alike = [name for name in names if name.strip().lower() == wanted]
        found += sorted(alike, key=lambda name: name != wanted)
    return found


def texts_of(column: pa.ChunkedArray) -> tuple[str, ...]:
    """Return values as text, "" where null; rows with the same text share one string."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if pa.types.is_nested(kind):
        values = column.to_pylist()
        return tuple(
            "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
            for value in values
        )
    encoded = pc.fill_null(column.cast(pa.string()), "").combine_chunks().dictionary_encode()
    known = encoded.dictionary.to_pylist()
    return tuple(known[index] for index in encoded.indices.to_pylist())


def beside(table_location: str) -> Callable[[str], str]:
    """Return the function that resolves the locations in a table."""
    parent = storage.absolute(table_location).rsplit("/", 1)[0]

    def resolve(location: str) -> str:
        if "://" in location or location.startswith("/"):
            return location
        return f"{parent}/{location}"

    return resolve


def digest_table(columns: Iterable[Sequence[object]]) -> str:
    """Return the SHA-256 of columns, row by row, with unambiguous separators."""
    hasher = hashlib.sha256()
    for row in zip(*columns, strict=True):
        hasher.update(repr(row).encode())
        hasher.update(b"\n")
    return hasher.hexdigest()
