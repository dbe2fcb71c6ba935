"""Tables as users bring them, in CSV, JSON lines or Parquet, and the digest of any table.

A location in a table is a URI, an absolute path, or a path relative to the table's own folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from eagleray import storage
from eagleray.errors import InputError, UnknownNameError

__all__ = [
    "TABLE_EXTENSIONS",
    "URI_COLUMNS",
    "TableFile",
    "beside",
    "digest_table",
    "open_parquet",
    "open_table",
    "read_csv_table",
    "require_column",
    "resolve_beside",
    "texts_of",
]

URI_COLUMNS = ("uri", "path", "file", "filename", "image", "url")
"""Column names that hold the image's location when the user names none, best first."""

_BLOCK_BYTES = 16 * 2**20  # of a CSV; no row may be longer
_BATCH_ROWS = 8192
_COLUMN_BUFFER = 2**20


class TableFile(Protocol):
    """A table that is there and can be read.

    Attributes:
        location: Of its file.
        schema: Its columns.
        num_rows: Its rows; None where only reading them all would tell, and there are some.
    """

    location: str
    schema: pa.Schema
    num_rows: int | None

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some of its columns, in the order asked for, a few thousand rows at a time.

        Raises:
            InputError: It is damaged farther on.
        """
        ...


def open_table(location: str, *, may_be_empty: bool = False) -> TableFile:
    """Open a table by its extension; a file of any other is taken for a CSV.

    Args:
        location: Of the file.
        may_be_empty: Whether one without rows will do.

    Raises:
        InputError: It is not there, is no such table, has two columns of one name, or no rows.
    """
    lower = location.lower()
    kinds = (extension for extension in _KINDS if lower.endswith(extension))
    table: TableFile = _KINDS[next(kinds, ".csv")](location)
    names = table.schema.names
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"{location} has more than one column named {doubled[0]!r}; rename one.")
    if table.num_rows == 0 and not may_be_empty:
        raise InputError(f"{location} has a header and no rows.")
    return table


def open_parquet(location: str) -> pq.ParquetFile:
    """Open a Parquet file to be read forward, in little memory.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The storage does not give it.
        InputError: It is no Parquet file, or is damaged.
    """
    file = storage.open_seekable(location)
    try:
        return pq.ParquetFile(file, buffer_size=_COLUMN_BUFFER, pre_buffer=False)
    except pa.ArrowException as error:
        fault = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{location} is not a whole Parquet file ({fault}).") from error


@contextlib.contextmanager
def _reading(location: str) -> Iterator[None]:
    """Say in one sentence that a file named by the user cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"Cannot read {location}: there is no such file.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None


# --- CSV --------------------------------------------------------------------------------------


class _Csv:
    """A CSV with a header in UTF-8; every column stays the text that was written."""

    def __init__(self, location: str) -> None:
        self.location = location
        with self._open(pyarrow.csv.ConvertOptions()) as reader:
            self.schema = pa.schema([(name, pa.string()) for name in reader.schema.names])
            has_rows = any(batch.num_rows for batch in reader)
        self.num_rows: int | None = None if has_rows else 0

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        options = pyarrow.csv.ConvertOptions(
            column_types=self.schema, strings_can_be_null=False, include_columns=list(columns)
        )
        with self._open(options) as reader:
            for batch in reader:
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, _BATCH_ROWS)])

    @contextlib.contextmanager
    def _open(
        self, options: pyarrow.csv.ConvertOptions
    ) -> Iterator[pyarrow.csv.CSVStreamingReader]:
        try:
            with _reading(self.location), storage.open_seekable(self.location) as file:
                yield pyarrow.csv.open_csv(
                    file,
                    pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
                    pyarrow.csv.ParseOptions(newlines_in_values=True),
                    options,
                )
        except UnicodeDecodeError:
            raise InputError(
                f"{self.location} is not a CSV with a header in UTF-8; save it in that encoding."
            ) from None
        except pa.ArrowInvalid as error:
            fault = str(error).splitlines()[0].rstrip(".")
            raise InputError(f"{self.location} is not a CSV with a header ({fault}).") from None


def read_csv_table(location: str) -> pa.Table:
    """Read a CSV with a header whole; every column stays text.

    Raises:
        InputError: It is not there, is no CSV, or has no rows.
    """
    table = open_table(location)
    return pa.concat_tables(table.read(table.schema.names))


# --- JSON lines -------------------------------------------------------------------------------


class _JsonLines:
    """One JSON object in each line, in UTF-8.

    A column of whole numbers, of numbers, of truth values or of text has that type; nested values,
    and those of a column of several kinds, become the JSON text that stands for them.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        kinds: dict[str, set[str]] = {}
        num_rows = 0
        for record in self._records():
            num_rows += 1
            for name, value in record.items():
                kinds.setdefault(name, set()).add(_kind_of(value))
        self.num_rows: int | None = num_rows
        self._types = {name: _type_of(found - {"null"}) for name, found in kinds.items()}
        self._keys = {_as_utf8(name): name for name in kinds}
        fields = [(name, self._types[key] or pa.string()) for name, key in self._keys.items()]
        self.schema = pa.schema(fields)

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        waiting: list[list[Any]] = []
        for record in self._records():
            waiting.append([self._cell(record, self._keys[name]) for name in columns])
            if len(waiting) == _BATCH_ROWS:
                yield self._table(columns, waiting)
                waiting = []
        if waiting:
            yield self._table(columns, waiting)

    def _cell(self, record: dict[str, Any], key: str) -> Any:
        value = record.get(key)
        if value is None:
            return None
        kind = self._types[key]
        if kind is None:
            return _as_utf8(json.dumps(value, ensure_ascii=False))
        return _as_utf8(value) if kind == pa.string() else value

    def _table(self, columns: Sequence[str], rows: list[list[Any]]) -> pa.Table:
        fields = [self.schema.field(name) for name in columns]
        cells = zip(*rows, strict=True)
        arrays = [pa.array(values, field.type) for values, field in zip(cells, fields, strict=True)]
        return pa.table(arrays, schema=pa.schema(fields))

    def _records(self) -> Iterator[dict[str, Any]]:
        with _reading(self.location), storage.open_seekable(self.location) as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield self._parse(text, number)

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            fault = str(error).splitlines()[0]
        else:
            if isinstance(record, dict):
                return record
            fault = "it is no object in braces"
        raise InputError(f"Line {number} of {self.location} is not JSON ({fault}).") from None


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        exact = abs(value) <= 2**53  # in a float, too
        return "int" if exact else "long" if -(2**63) <= value < 2**63 else "huge"
    if isinstance(value, float):
        return "float"
    return "text" if isinstance(value, str) else "nested"


def _type_of(kinds: set[str]) -> pa.DataType | None:
    """Return the type of a column; None where its values become JSON text."""
    if kinds <= {"text"}:
        return pa.string()
    if kinds <= {"int", "long"}:
        return pa.int64()
    if kinds <= {"int", "float"}:
        return pa.float64()
    return pa.bool_() if kinds == {"bool"} else None


def _as_utf8(text: str) -> str:
    """Return text that a table can hold: JSON can spell halves of characters."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


# --- Parquet ----------------------------------------------------------------------------------


class _Parquet:
    """A Parquet file; types are as they are, and columns that nobody asks for are not read."""

    def __init__(self, location: str) -> None:
        self.location = location
        with _reading(location), open_parquet(location) as file:
            self.schema = file.schema_arrow.remove_metadata()
            self.num_rows: int | None = file.metadata.num_rows

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        wanted = list(columns)
        with _reading(self.location), open_parquet(self.location) as file:
            try:
                for batch in file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False):
                    yield pa.Table.from_batches([batch]).select(wanted)
            except pa.ArrowException as error:
                fault = str(error).splitlines()[0].rstrip(".")
                raise InputError(f"{self.location} is damaged ({fault}); copy it again.") from None


_KINDS: dict[str, type[_Csv | _JsonLines | _Parquet]] = {
    ".csv": _Csv,
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".parquet": _Parquet,
    ".pq": _Parquet,
}

TABLE_EXTENSIONS = tuple(_KINDS)
"""Extensions of files that are tables, lower-case."""


# --- columns, locations, digests ---------------------------------------------------------------


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


def resolve_beside(table_location: str, location: str) -> str:
    """Resolve a location in a table: relative ones are relative to the table's folder."""
    return beside(table_location)(location)


def beside(table_location: str) -> Callable[[str], str]:
    """Return what resolves the locations in a table."""
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
