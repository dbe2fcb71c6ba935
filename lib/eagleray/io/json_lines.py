"""Reads files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from eagleray.core.errors import InputError
from eagleray.core.file_names import escape_file_name
from eagleray.io.delimited import not_utf8, require_utf8
from eagleray.io.table_file import BATCH_ROWS, open_text, read_start

__all__ = ["JsonLinesTable"]


class JsonLinesTable:
    """One JSON object in each line, in UTF-8.

    A column of whole numbers, of numbers, of truth values or of text has that type; nested values,
    and those of a column of several kinds, become the JSON text that stands for them.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.notes: tuple[str, ...] = ()
        start, whole = read_start(location)
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
        """Yield some columns, as `TableFile` says."""
        waiting: list[list[Any]] = []
        for record in self._records():
            waiting.append([self._cell(record, self._keys[name]) for name in columns])
            if len(waiting) == BATCH_ROWS:
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
        with open_text(self.location) as file:
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
            fault = "it is not an object in braces"
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
