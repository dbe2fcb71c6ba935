"""Formats and columns that tests of result files share."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import get_args

import pyarrow as pa
import pytest

from eagleray.core.types import OutputFormat

FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)


every_format = pytest.mark.parametrize("output_format", FORMATS)


ODD_COLUMNS: dict[str, pa.Array] = {
    "bool": pa.array([True, None]),
    "int8": pa.array([-128, None], pa.int8()),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "half": pa.array([1.5, None], pa.float16()),
    "float": pa.array([0.1, None], pa.float32()),
    "double": pa.array([0.1, None]),
    "null": pa.nulls(2),
    "digits": pa.array(["007", None]),
    "date in text": pa.array(["2026-01-01", None]),
    "no answer": pa.array(["NA", "null"]),
    "empty": pa.array(["", None]),
    "quotes": pa.array(['say "a,b"\r\n\0', "\ufeff\u2028;\t"]),
    "large": pa.array(["a", None], pa.large_string()),
    "view": pa.array(["a", None], pa.string_view()),
    "binary": pa.array([b"\xff\x00", None]),
    "large binary": pa.array([b"\xff\x00", None], pa.large_binary()),
    "fixed binary": pa.array([b"\xff\x00", None], pa.binary(2)),
    "date": pa.array([dt.date(2026, 1, 31), None]),
    "date64": pa.array([dt.date(2026, 1, 31), None], pa.date64()),
    "time": pa.array([dt.time(1, 2, 3, 4), None], pa.time64("us")),
    "time in ns": pa.array([1, None], pa.time64("ns")),
    "time in s": pa.array([3723, None], pa.time32("s")),
    "moment": pa.array([1, None], pa.timestamp("ns")),
    "moment with zone": pa.array([10**15, None], pa.timestamp("us", "Europe/Berlin")),
    "duration": pa.array([1, None], pa.duration("ns")),
    "decimal": pa.array([decimal.Decimal("1.50"), None]),
    "long decimal": pa.array([decimal.Decimal("1" * 48 + ".50"), None], pa.decimal256(50, 2)),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None], pa.binary(16))),
    "list": pa.array([["a", None, ""], None]),
    "list of nulls": pa.array([[None], None], pa.list_(pa.null())),
    "list view": pa.array([[1], None], pa.list_view(pa.int32())),
    "struct": pa.array([{"a": 1, "b": [b"x"]}, None]),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())),
    "deep": pa.array(
        [[{"at": dt.datetime(2026, 1, 1, 1, 2, 3, 4), "cost": decimal.Decimal("1.20")}], None]
    ),
}
