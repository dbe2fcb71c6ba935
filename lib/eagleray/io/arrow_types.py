"""The forms of each Arrow type outside Arrow: in CSV and JSON lines, and in SQL databases."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

__all__ = [
    "SqlType",
    "TypeForms",
    "forms_of",
    "is_bytes",
    "is_text",
    "json_text",
    "storage_array",
    "storage_type",
    "valid_text",
]

# fmt: off
SqlType = Literal[
    "text", "boolean", "smallint", "integer", "bigint", "numeric", "real", "double", "date", "time",
    "timestamp", "bytes", "json",
]
# fmt: on


@dataclass(frozen=True, slots=True)
class TypeForms:
    """The forms of one Arrow type.

    Attributes:
        text: Arrow type that CSV and JSON lines are written from and read into.
        sql: Kind of SQL column that holds every value; None if there is none.
    """

    text: pa.DataType
    sql: SqlType | None


def is_text(kind: pa.DataType) -> bool:
    """Whether values are text."""
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in tests)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes."""
    types = pa.types
    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(test(kind) for test in tests) or bool(types.is_binary_view(kind))


_ITSELF = pa.null()  # stands in the table for the type itself
_STRING = pa.string()

_FORMS: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType, SqlType | None], ...] = (
    (is_text, _STRING, "text"),
    (pa.types.is_null, _ITSELF, "text"),
    (pa.types.is_boolean, _ITSELF, "boolean"),
    (pa.types.is_int8, _ITSELF, "smallint"),
    (pa.types.is_uint8, _ITSELF, "smallint"),
    (pa.types.is_int16, _ITSELF, "smallint"),
    (pa.types.is_uint16, _ITSELF, "integer"),
    (pa.types.is_int32, _ITSELF, "integer"),
    (pa.types.is_uint32, _ITSELF, "bigint"),
    (pa.types.is_int64, _ITSELF, "bigint"),
    (pa.types.is_uint64, _ITSELF, "numeric"),
    (pa.types.is_float16, pa.float32(), "real"),
    (pa.types.is_float32, _ITSELF, "real"),
    (pa.types.is_float64, _ITSELF, "double"),
    (pa.types.is_decimal, _STRING, "numeric"),  # digit by digit
    (pa.types.is_date, _STRING, "date"),  # times as in ISO 8601
    (pa.types.is_time, _STRING, "time"),
    (pa.types.is_timestamp, _STRING, "timestamp"),
    (pa.types.is_duration, pa.int64(), None),  # a whole number of its unit
    (is_bytes, _STRING, "bytes"),  # base64
    (pa.types.is_nested, _STRING, "json"),  # as JSON
)


def storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that an extension type or a dictionary stands for."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        extension = isinstance(kind, pa.BaseExtensionType)
        kind = kind.storage_type if extension else kind.value_type
    return kind


def forms_of(kind: pa.DataType) -> TypeForms:
    """Return the forms of a type, or of the type that it stands for."""
    kind = storage_type(kind)
    for matches, text, sql in _FORMS:
        if matches(kind):
            return TypeForms(kind if text is _ITSELF else text, sql)
    return TypeForms(_STRING, None)


def storage_array(array: pa.Array) -> pa.Array:
    """Return the values that an extension type or a dictionary stands for."""
    while True:
        if isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        elif pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        else:
            return array


def valid_text(array: pa.Array) -> pa.Array:
    """Replace what is not UTF-8 by U+FFFD: Parquet files of other programs hold any bytes as text.

    Args:
        array: Text.

    Returns:
        Text of the same length, as `string` or `large_string`.
    """
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        texts = [
            None if value is None else value.decode(errors="replace")
            for value in array.cast(pa.large_binary()).to_pylist()
        ]
        return pa.array(texts, pa.large_string())
    return array.cast(pa.large_string()) if pa.types.is_string_view(array.type) else array


# --- nested values ----------------------------------------------------------------------------


def json_text(value: Any, *, replace_nul: bool = False) -> str:
    """Encode a nested value as JSON, in which NaN and infinity are null, and bytes base64.

    Args:
        value: Lists, dictionaries and what Arrow's scalars are in Python.
        replace_nul: Whether NUL characters become U+FFFD.
    """
    # Odd values are rare and taking a value apart is slow, so only what holds one is taken apart.
    try:
        text = _ENCODER.encode(value)
    except ValueError:
        text = _ENCODER.encode(value := _replaced(value, _finite))
    if replace_nul and "\\u0000" in text:
        text = _ENCODER.encode(_replaced(value, _without_nul))
    return text


def _scalar(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_scalar)


def _replaced(value: Any, replace: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {replace(key): _replaced(item, replace) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, replace) for item in value]
    return replace(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_nul(value: Any) -> Any:
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
