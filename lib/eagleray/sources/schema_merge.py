"""Merges the user's own columns of several tables into those of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from eagleray.core.errors import InputError
from eagleray.sources.listing import LISTING_SCHEMA

__all__ = ["conform", "merge_schemas", "user_fields"]

_NUM_OURS = len(LISTING_SCHEMA)


def user_fields(schema: pa.Schema, drop: Callable[[pa.Field], bool]) -> pa.Schema:
    """Return the user's columns: nullable, and without metadata of other programs."""
    return pa.schema(
        [pa.field(field.name, _plain(field.type)) for field in schema if not drop(field)]
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def merge_schemas(places: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """Merge columns by name, in the order in which they first appear.

    A column with several types takes the widest if they are all whole numbers or all fractions,
    and is text otherwise.

    Args:
        places: Location of each table, for messages, and its columns.

    Raises:
        InputError: If a column has types that text cannot represent.
    """
    united: dict[str, tuple[str, pa.DataType]] = {}
    for where, schema in places:
        for field in schema:
            first, kind = united.get(field.name, (where, field.type))
            common = _common_type(kind, field.type)
            if common is None:
                raise InputError(
                    f"Column {field.name!r} holds {kind} in {first} and {field.type} in {where}; "
                    "rename one of them, or run two jobs."
                )
            united[field.name] = first, common
    return pa.schema([(name, kind) for name, (_, kind) in united.items()])


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    for numbers in (pa.types.is_signed_integer, pa.types.is_floating):
        if numbers(one) and numbers(other):
            return max(one, other, key=lambda kind: kind.bit_width)
    return pa.string() if _is_simple(one) and _is_simple(other) else None


def _is_simple(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_primitive,
            pa.types.is_decimal,
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
        )
    )


def conform(table: pa.Table, user_schema: pa.Schema, where: str) -> pa.Table:
    """Give a table the merged columns; null where it lacks one.

    Raises:
        InputError: It has one that they lack, or of a type that does not fit: it was found after
            they were settled.
    """
    names = table.schema.names[_NUM_OURS:]
    columns = dict(zip(names, table.columns[_NUM_OURS:], strict=True))
    for name, column in columns.items():
        index = user_schema.get_field_index(name)
        known = user_schema.field(index).type if index >= 0 else None
        if known is None or _common_type(known, _plain(column.type)) != known:
            raise InputError(
                f"{where} has a column {name!r} of {column.type} that the tables before it lack "
                "or have otherwise; name the tables on their own, as a pattern."
            )
    own = [
        pc.cast(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(table.num_rows, field.type)
        for field in user_schema
    ]
    schema = pa.schema([*LISTING_SCHEMA, *user_schema])
    return pa.table([*table.columns[:_NUM_OURS], *own], schema=schema)
