"""Encodes tables as Parquet, CSV and JSON lines, and decodes them.

Both text formats write times as ISO 8601, durations as whole numbers of their unit, decimals digit
by digit and bytes in base64. CSV writes lists and structs as JSON, and tells an empty text
(`""`) from a null (nothing). JSON has no NaN and no infinity; they become null. Control characters
are escapes in both, so that a file may be shown on a terminal, and are read back as they were.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from eagleray.core.display import ESCAPED_CELL_PATTERN, escape_cell, escape_json, unescape_cell
from eagleray.core.types import OutputFormat
from eagleray.io.arrow_types import (
    forms_of,
    is_bytes,
    is_text,
    json_text,
    storage_type,
    valid_text,
)

__all__ = ["column_names", "decode_table", "encode_table"]

_ROWS_AT_ONCE = 4096
_MAX_BLOCK = 2**31 - 1


def encode_table(table: pa.Table, output_format: OutputFormat) -> bytes:
    """Encode a table as the bytes of one file."""
    buffer = io.BytesIO()
    if output_format == "parquet":
        pyarrow.parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    elif output_format == "csv":
        columns = [_cells(_spelled(column)) for column in table.columns]
        names = [escape_cell(name) for name in table.column_names]
        pyarrow.csv.write_csv(pa.table(columns, names=names), buffer)
    else:
        columns = [_spelled(column) for column in table.columns]
        spelled = pa.table(columns, names=table.column_names)
        for batch in spelled.to_batches(max_chunksize=_ROWS_AT_ONCE):
            for record in batch.to_pylist():
                buffer.write(_json(record).encode() + b"\n")
    return buffer.getvalue()


def column_names(content: bytes, output_format: OutputFormat) -> list[str]:
    """Return the names of a file's columns, in order."""
    names: list[str]
    if output_format == "parquet":
        names = pyarrow.parquet.read_schema(pa.BufferReader(content)).names
    elif output_format == "csv":
        header = _open_csv(content, pyarrow.csv.ConvertOptions()).schema.names
        names = [unescape_cell(name) for name in header]
    else:
        names = list(json.loads(content.split(b"\n", 1)[0]))
    return names


def decode_table(content: bytes, output_format: OutputFormat, schema: pa.Schema) -> pa.Table:
    """Read some columns of a file.

    Args:
        content: Bytes of the file.
        output_format: Format of the file.
        schema: The columns, with the types that they had when they were encoded.

    Raises:
        ValueError: If the file is damaged; `OSError` and `KeyError` may say so as well.
    """
    if output_format == "parquet":
        file = pyarrow.parquet.ParquetFile(
            pa.BufferReader(content), page_checksum_verification=True
        )
        return file.read(schema.names).select(schema.names).cast(schema)
    columns = _read_csv(content, schema) if output_format == "csv" else _read_json(content, schema)
    return pa.table(list(columns), schema=schema)


# --- write ------------------------------------------------------------------------------------


def _spelled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values in the types of both text formats; nested ones stay."""
    kind = storage_type(column.type)
    if kind != column.type:
        column = column.cast(kind)
    if pa.types.is_nested(kind):
        return column
    if is_bytes(kind):
        return _texts(map(_in_base64, column.to_pylist()))
    if is_text(kind):
        return _valid_texts(column)
    return column.cast(forms_of(kind).text)


def _valid_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    chunks = [valid_text(chunk) for chunk in column.chunks]
    types = {chunk.type for chunk in chunks}
    kind = types.pop() if len(types) == 1 else pa.large_string()
    return pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind)


def _texts(values: Iterable[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(list(values), pa.large_string())])


def _cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return cells of CSV: nested values as JSON, texts with control characters escaped."""
    if pa.types.is_nested(column.type):
        return _texts(value if value is None else _json(value) for value in column.to_pylist())
    if (
        is_text(column.type)
        and pc.any(pc.match_substring_regex(column, ESCAPED_CELL_PATTERN)).as_py()
    ):
        return _each(escape_cell, column)
    return column


def _each(change: Callable[[str], str], column: pa.ChunkedArray) -> pa.ChunkedArray:
    return _texts(value if value is None else change(value) for value in column.to_pylist())


def _json(value: Any) -> str:
    return escape_json(json_text(value))


# --- read -------------------------------------------------------------------------------------


def _open_csv(content: bytes, convert: pyarrow.csv.ConvertOptions) -> pa.RecordBatchReader:
    return pyarrow.csv.open_csv(
        pa.BufferReader(content),
        # One block: a row that is cut by its end could not be read.
        read_options=pyarrow.csv.ReadOptions(block_size=min(len(content) + 1, _MAX_BLOCK)),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=convert,
    )


def _read_csv(content: bytes, schema: pa.Schema) -> Iterator[pa.ChunkedArray]:
    cells = {escape_cell(field.name): field.type for field in schema}
    options = pyarrow.csv.ConvertOptions(
        include_columns=list(cells),
        column_types={name: forms_of(kind).text for name, kind in cells.items()},
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    found = _open_csv(content, options).read_all()
    for name, kind in cells.items():
        column = found.column(name)
        if pa.types.is_nested(storage_type(kind)):
            parsed = [value if value is None else json.loads(value) for value in column.to_pylist()]
            yield _revived(parsed, kind)
        else:
            yield _revived(_unescaped(column), kind)


def _unescaped(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if is_text(column.type) and pc.any(pc.match_substring(column, "\\u")).as_py():
        return _each(unescape_cell, column)
    return column


def _read_json(content: bytes, schema: pa.Schema) -> Iterator[pa.ChunkedArray]:
    values: list[list[Any]] = [[] for _ in schema]
    for line in io.BytesIO(content):
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("a line is not a JSON object")
        for name, column in zip(schema.names, values, strict=True):
            column.append(record[name])
    for field, column in zip(schema, values, strict=True):
        yield _revived(column, field.type)


def _revived(values: list[Any] | pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return the values of a type from what stands for them."""
    stored = storage_type(kind)
    if pa.types.is_nested(stored):
        column = pa.chunked_array([pa.array([_parsed(value, stored) for value in values], stored)])
    else:
        carried = values if isinstance(values, pa.ChunkedArray) else _carried(values, stored)
        column = _from_base64(carried, stored) if is_bytes(stored) else _cast(carried, stored)
    return column if stored == kind else column.cast(kind)


def _carried(values: list[Any], kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, forms_of(kind).text)])


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_time(kind):  # Arrow reads no time of day, but moments
        moments = pc.binary_join_element_wise("1970-01-01", column, " ")
        column = moments.cast(pa.timestamp(kind.unit))
    return column.cast(kind)


def _in_base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _of_base64(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def _from_base64(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    found = [value if value is None else _of_base64(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(found, kind)])


def _parsed(value: Any, kind: pa.DataType) -> Any:
    """Return what a nested value was before it was spelled as JSON."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: _parsed(value.get(field.name), field.type) for field in kind}
    if pa.types.is_map(kind):
        return [(_parsed(k, kind.key_type), _parsed(v, kind.item_type)) for k, v in value]
    if pa.types.is_nested(kind):
        return [_parsed(item, kind.value_type) for item in value]
    if is_bytes(kind):
        return _of_base64(value)
    spelled = pa.types.is_temporal(kind) or pa.types.is_decimal(kind)
    return _revived([value], kind)[0].as_py() if spelled else value
