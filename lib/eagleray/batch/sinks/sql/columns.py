"""Result columns as SQL has them: a type for every Arrow type, and plain values for every array."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

__all__ = ["fits", "plain_column", "spelling", "sql_type"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_WIDER = {
    "SMALLINT": {"INTEGER", "BIGINT"},
    "INTEGER": {"BIGINT"},
    "REAL": {"DOUBLE PRECISION", "DOUBLE"},
    "TEXT": {"VARCHAR"},
    "JSONB": {"JSON"},
}
"""Types, as a database spells them, that hold every value of the type before them."""


def _text(data_type: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(data_type)
        or types.is_large_string(data_type)
        or types.is_string_view(data_type)
    )


def _bytes(data_type: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_binary(data_type)
        or types.is_large_binary(data_type)
        or types.is_fixed_size_binary(data_type)
        or types.is_binary_view(data_type)
    )


_TYPES: tuple[tuple[Callable[[pa.DataType], bool], Callable[[], TypeEngine[Any]]], ...] = (
    (_text, sa.Text),
    (pa.types.is_null, sa.Text),
    (pa.types.is_boolean, sa.Boolean),
    (pa.types.is_int8, sa.SmallInteger),
    (pa.types.is_uint8, sa.SmallInteger),
    (pa.types.is_int16, sa.SmallInteger),
    (pa.types.is_uint16, sa.Integer),
    (pa.types.is_int32, sa.Integer),
    (pa.types.is_uint32, sa.BigInteger),
    (pa.types.is_int64, sa.BigInteger),
    (pa.types.is_uint64, lambda: _exact_number(20, 0)),
    (pa.types.is_float16, sa.REAL),
    (pa.types.is_float32, sa.REAL),
    (pa.types.is_float64, sa.Double),
    (pa.types.is_date, sa.Date),
    (pa.types.is_time, sa.Time),
    (_bytes, sa.LargeBinary),
    (pa.types.is_nested, lambda: sa.JSON().with_variant(postgresql.JSONB(), "postgresql")),
)


def _exact_number(precision: int, scale: int) -> TypeEngine[Any]:
    # SQLite keeps a NUMERIC as a double, which rounds; text keeps every digit.
    return sa.Numeric(precision, scale).with_variant(sa.Text(), "sqlite")


def sql_type(data_type: pa.DataType) -> TypeEngine[Any] | None:
    """Return the column type that holds every value of an Arrow type, or None if there is none."""
    if isinstance(data_type, pa.BaseExtensionType):
        return sql_type(data_type.storage_type)
    if pa.types.is_dictionary(data_type):
        return sql_type(data_type.value_type)
    if pa.types.is_decimal(data_type):
        return _exact_number(data_type.precision, data_type.scale)
    if pa.types.is_timestamp(data_type):
        return sa.DateTime(timezone=data_type.tz is not None)
    return next((make() for matches, make in _TYPES if matches(data_type)), None)


def spelling(data_type: TypeEngine[Any], dialect: sa.Dialect) -> str:
    """Return a type as the database writes it."""
    if isinstance(data_type, sa.types.NullType):  # SQLAlchemy's word for one that it does not know
        return "of no common type"
    return data_type.compile(dialect)


def fits(needed: TypeEngine[Any], present: TypeEngine[Any], dialect: sa.Dialect) -> bool:
    """Whether a column of a table that exists holds every value of the type that is needed."""
    need = spelling(needed, dialect)
    have = spelling(present, dialect).split(" COLLATE ")[0]
    if need.startswith("NUMERIC"):
        return have in {need, "NUMERIC"}
    return have == need or have in _WIDER.get(need, ())


def plain_column(array: pa.Array) -> pa.Array:
    """Turn values into what any database takes: text, numbers, booleans, bytes and nulls.

    Text that is no UTF-8 and NUL characters, which PostgreSQL refuses, become U+FFFD. Lists and
    structs become JSON, times text in ISO 8601 to the microsecond, time stamps with a zone UTC.

    Args:
        array: Of a type that `sql_type` knows.

    Returns:
        An array of the same length.
    """
    array = _unwrapped(array)
    data_type = array.type
    if pa.types.is_nested(data_type):
        return pa.array([_json(value) for value in array.to_pylist()], pa.large_string())
    if _text(data_type):
        return _clean_text(array)
    if pa.types.is_timestamp(data_type):
        array = _cut(array, pa.timestamp("us", "UTC" if data_type.tz else None))
    if pa.types.is_time(data_type):
        array = _cut(array, pa.time64("us"))
    if pa.types.is_float16(data_type):
        return array.cast(pa.float32())
    if pa.types.is_temporal(data_type) or pa.types.is_decimal(data_type):
        return array.cast(pa.string())
    return array.cast(pa.string()) if pa.types.is_uint64(data_type) else array


def _unwrapped(array: pa.Array) -> pa.Array:
    """Return the values that an extension type or a dictionary stands for."""
    while True:
        if isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        elif pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        else:
            return array


def _cut(times: pa.Array, data_type: pa.DataType) -> pa.Array:
    """Cast times to microseconds; nanoseconds are cut off, for no database has them."""
    options = pyarrow.compute.CastOptions(target_type=data_type, allow_time_truncate=True)
    return times.cast(options=options)


def _clean_text(array: pa.Array) -> pa.Array:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:  # a reader of Parquet hands on whatever bytes the file calls text
        texts = [
            None if value is None else value.decode(errors="replace")
            for value in array.cast(pa.large_binary()).to_pylist()
        ]
        array = pa.array(texts, pa.large_string())
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.large_string())
    return pyarrow.compute.replace_substring(array, "\0", _REPLACEMENT)


def _json(value: Any) -> str | None:
    """Spell a list or struct as JSON that PostgreSQL takes: NaN and infinity become null."""
    if value is None:
        return None
    try:
        text = _ENCODER.encode(value)
    except ValueError:
        return _ENCODER.encode(_mended(value))
    # An odd value is rare and taking a value apart is slow, so only what holds one is taken apart.
    return _ENCODER.encode(_mended(value)) if "\\u0000" in text else text


def _json_scalar(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_json_scalar)


def _mended(value: Any) -> Any:
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mended(item) for item in value]
    if isinstance(value, str):
        return value.replace("\0", _REPLACEMENT)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
