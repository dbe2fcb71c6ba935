"""SQL columns for Arrow types, and Arrow arrays as values that any database takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from eagleray.io.arrow_types import (
    SqlType,
    forms_of,
    is_text,
    json_text,
    storage_array,
    storage_type,
    valid_text,
)

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


def _exact_number(kind: pa.DataType) -> TypeEngine[Any]:
    precision, scale = (kind.precision, kind.scale) if pa.types.is_decimal(kind) else (20, 0)
    # SQLite keeps a NUMERIC as a double, which rounds; text keeps every digit.
    return sa.Numeric(precision, scale).with_variant(sa.Text(), "sqlite")


_TYPES: dict[SqlType, Callable[[pa.DataType], TypeEngine[Any]]] = {
    "text": lambda _: sa.Text(),
    "boolean": lambda _: sa.Boolean(),
    "smallint": lambda _: sa.SmallInteger(),
    "integer": lambda _: sa.Integer(),
    "bigint": lambda _: sa.BigInteger(),
    "numeric": _exact_number,
    "real": lambda _: sa.REAL(),
    "double": lambda _: sa.Double(),
    "date": lambda _: sa.Date(),
    "time": lambda _: sa.Time(),
    "timestamp": lambda kind: sa.DateTime(timezone=kind.tz is not None),
    "bytes": lambda _: sa.LargeBinary(),
    "json": lambda _: sa.JSON().with_variant(postgresql.JSONB(), "postgresql"),
}


def sql_type(data_type: pa.DataType) -> TypeEngine[Any] | None:
    """Return the column type that holds every value of an Arrow type, or None if there is none."""
    kind = forms_of(data_type).sql
    return None if kind is None else _TYPES[kind](storage_type(data_type))


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

    Text that is not UTF-8 and NUL characters, which PostgreSQL refuses, become U+FFFD. Lists and
    structs become JSON, times text in ISO 8601 to the microsecond, time stamps with a zone UTC.

    Args:
        array: Array of a type that `sql_type` knows.

    Returns:
        An array of the same length.
    """
    array = storage_array(array)
    data_type = array.type
    if pa.types.is_nested(data_type):
        texts = [
            None if value is None else json_text(value, replace_nul=True)
            for value in array.to_pylist()
        ]
        return pa.array(texts, pa.large_string())
    if is_text(data_type):
        return pyarrow.compute.replace_substring(valid_text(array), "\0", _REPLACEMENT)
    if pa.types.is_timestamp(data_type):
        array = _cut(array, pa.timestamp("us", "UTC" if data_type.tz else None))
    if pa.types.is_time(data_type):
        array = _cut(array, pa.time64("us"))
    if pa.types.is_float16(data_type):
        return array.cast(pa.float32())
    if pa.types.is_temporal(data_type) or pa.types.is_decimal(data_type):
        return array.cast(pa.string())
    return array.cast(pa.string()) if pa.types.is_uint64(data_type) else array


def _cut(times: pa.Array, data_type: pa.DataType) -> pa.Array:
    """Cast times to microseconds; nanoseconds are cut off, for no database has them."""
    options = pyarrow.compute.CastOptions(target_type=data_type, allow_time_truncate=True)
    return times.cast(options=options)
