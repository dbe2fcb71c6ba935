"""Reads tables in CSV, TSV, JSON lines and Parquet, and computes the digest of any table.

A location in a table is a URI, an absolute path, or a path relative to the table's own folder.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.file_names import escape_file_name
from eagleray.io import storage
from eagleray.io.delimited import SAMPLE_BYTES, describe_delimited, not_utf8, require_utf8
from eagleray.io.file_kinds import NUM_SNIFFED_BYTES, describe_file_kind, is_text

__all__ = [
    "TABLE_EXTENSIONS",
    "URI_COLUMNS",
    "TableFile",
    "beside",
    "digest_table",
    "find_usual",
    "open_parquet",
    "open_table",
    "read_csv_table",
    "require_column",
    "resolve_beside",
    "texts_of",
]

URI_COLUMNS = ("uri", "path", "file", "filename", "image", "url")
"""Column names that hold the image's location when the user names none, best first.

Spaces around them and the case of letters do not matter.
"""

_BLOCK_BYTES = 16 * 2**20  # read at once from a CSV; no row may be longer
_BATCH_ROWS = 8192
_COLUMN_BUFFER = 2**20
_GZIP = ".gz"


class TableFile(Protocol):
    """An open table.

    Attributes:
        location: Location of the file.
        schema: Columns of the table.
        num_rows: Number of rows; None if there are rows that only reading them all would count.
        notes: Clauses for the user on what was decided in reading it.
    """

    location: str
    schema: pa.Schema
    num_rows: int | None
    notes: tuple[str, ...]

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some of its columns, in the order asked for, a few thousand rows at a time.

        Raises:
            InputError: If the file is damaged farther on.
        """
        ...


def open_table(location: str, *, may_be_empty: bool = False) -> TableFile:
    """Open a table by its extension; a file of any other is taken for a CSV.

    A text that ends in `.gz` is unpacked while it is read.

    Args:
        location: Location of the file.
        may_be_empty: Whether a table without rows is allowed.

    Raises:
        InputError: If it is not there, is no such table, has two columns of one name, or no rows.
    """
    lower = location.lower().removesuffix(_GZIP)
    kinds = (extension for extension in _KINDS if lower.endswith(extension))
    table = _KINDS[next(kinds, ".csv")](location)
    names = table.schema.names
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"{location} has more than one column named {doubled[0]!r}; rename one.")
    if table.num_rows == 0 and not may_be_empty:
        raise InputError(f"{location} has {'a header and ' * bool(names)}no rows.")
    return table


def open_parquet(location: str) -> pq.ParquetFile:
    """Open a Parquet file to be read forward, in little memory.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If the storage cannot read it.
        InputError: If it is no Parquet file, or is damaged.
    """
    file = storage.open_seekable(location)
    try:
        return pq.ParquetFile(file, buffer_size=_COLUMN_BUFFER, pre_buffer=False)
    except pa.ArrowException as error:
        file.seek(0)
        start = file.read(NUM_SNIFFED_BYTES)
        kind = describe_file_kind(start) or ("a text" if is_text(start) else None)
        if kind not in (None, "a Parquet file"):
            raise InputError(f"{location} is {kind}, and no Parquet file; rename it.") from error
        fault = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{location} is not a whole Parquet file ({fault}).") from error


@contextlib.contextmanager
def _reading(location: str) -> Iterator[None]:
    """Convert errors of reading a file that the user named into one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"Cannot read {location}: there is no such file.") from None
    except gzip.BadGzipFile:
        raise InputError(
            f"{location} is not compressed with gzip, or is damaged; if it is not, take {_GZIP!r} "
            "off its name."
        ) from None
    except (EOFError, zlib.error):
        raise InputError(f"{location} ends early or is damaged; copy it again.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None


# --- CSV --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened_text(location: str) -> Iterator[BinaryIO]:
    with _reading(location), storage.open_seekable(location) as file:
        if not location.lower().endswith(_GZIP):
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast("BinaryIO", unpacked)


def _first_bytes(location: str) -> tuple[bytes, bool]:
    """Return the first bytes of a text, and whether they are all."""
    with _opened_text(location) as file:
        start = file.read(SAMPLE_BYTES + 1)
    return start[:SAMPLE_BYTES], len(start) <= SAMPLE_BYTES


class _Csv:
    """A CSV with a header in UTF-8; every column stays the text that was written."""

    separator = ","

    def __init__(self, location: str) -> None:
        self.location = location
        start, whole = _first_bytes(location)
        form = describe_delimited(start, location, separator=self.separator, whole=whole)
        self._read_options = pyarrow.csv.ReadOptions(
            block_size=_BLOCK_BYTES, use_threads=False, skip_rows=form.skip_rows
        )
        self._parse_options = pyarrow.csv.ParseOptions(
            delimiter=form.separator, newlines_in_values=True
        )
        self.notes: tuple[str, ...] = () if form.note is None else (form.note,)
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
            with _opened_text(self.location) as file:
                yield pyarrow.csv.open_csv(file, self._read_options, self._parse_options, options)
        except pa.ArrowInvalid as error:
            fault = str(error).splitlines()[0].rstrip(".")
            if "Empty CSV" in fault:  # a single word, and not even the end of a line
                raise InputError(f"{self.location} has a header and no rows.") from None
            if "invalid UTF8" in fault:
                raise InputError(self._first_fault()) from None
            raise InputError(
                f"{self.location} cannot be read as a CSV ({fault}); every line must have as many "
                "values as the header has names."
            ) from None

    def _first_fault(self) -> str:
        """Return the sentence for the first line that is not UTF-8."""
        with _opened_text(self.location) as file:
            for number, line in enumerate(file):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    return not_utf8(line, error.start, self.location, lines_before=number)
        return f"{self.location} is not in UTF-8; save it in that encoding."


class _Tsv(_Csv):
    """The same with tabs between columns."""

    separator = "\t"


def read_csv_table(location: str) -> pa.Table:
    """Read a CSV with a header whole; every column stays text.

    Raises:
        InputError: If it is not there, is no CSV, or has no rows.
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
        self.notes: tuple[str, ...] = ()
        start, whole = _first_bytes(location)
        require_utf8(start, location, whole=whole)
        kinds: dict[str, set[str]] = {}
        num_rows = 0
        for record in self._records():
            num_rows += 1
            for name, value in record.items():
                kinds.setdefault(name, set()).add(_kind_of(value))
        self.num_rows: int | None = num_rows
        self._types = {name: _type_of(found - {"null"}) for name, found in kinds.items()}
        self._keys = {escape_file_name(name): name for name in kinds}
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
            return escape_file_name(json.dumps(value, ensure_ascii=False))
        return escape_file_name(value) if kind == pa.string() else value

    def _table(self, columns: Sequence[str], rows: list[list[Any]]) -> pa.Table:
        fields = [self.schema.field(name) for name in columns]
        cells = zip(*rows, strict=True)
        arrays = [pa.array(values, field.type) for values, field in zip(cells, fields, strict=True)]
        return pa.table(arrays, schema=pa.schema(fields))

    def _records(self) -> Iterator[dict[str, Any]]:
        with _opened_text(self.location) as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield self._parse(text, number)

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except UnicodeDecodeError as error:
            sentence = not_utf8(line, error.start, self.location, lines_before=number - 1)
            raise InputError(sentence) from None
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


# --- Parquet ----------------------------------------------------------------------------------


class _Parquet:
    """A Parquet file; types are kept, and only requested columns are read."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.notes: tuple[str, ...] = ()
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
    ".tsv": _Tsv,
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".parquet": _Parquet,
    ".pq": _Parquet,
}

_TEXTS = tuple(extension for extension, kind in _KINDS.items() if kind is not _Parquet)

TABLE_EXTENSIONS = (*_KINDS, *(extension + _GZIP for extension in _TEXTS))
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


def resolve_beside(table_location: str, location: str) -> str:
    """Resolve a location in a table: relative ones are relative to the table's folder."""
    return beside(table_location)(location)


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
