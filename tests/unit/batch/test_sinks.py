"""Sinks by name, and those of packages outside Eagleray."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.feather
import pytest
from pydantic import TypeAdapter, ValidationError

from eagleray.batch import sinks
from eagleray.batch.results import read_columns
from eagleray.batch.sinks import (
    FormatName,
    register_sink,
    register_table_sink,
    sink_named,
    table_sink,
)
from eagleray.batch.sinks.sql import SqlSink
from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.extensions import Extensions


class Feather:
    name = "feather"

    def encode(self, table: pa.Table) -> bytes:
        buffer = io.BytesIO()
        pyarrow.feather.write_feather(table, buffer)
        return buffer.getvalue()

    def column_names(self, content: bytes) -> list[str]:
        names: list[str] = pyarrow.feather.read_table(pa.BufferReader(content)).column_names
        return names

    def decode(self, content: bytes, schema: pa.Schema) -> pa.Table:
        found = pyarrow.feather.read_table(pa.BufferReader(content), columns=schema.names)
        return found.select(schema.names).cast(schema)


class Counter:
    """Counts the rows that it is given."""

    def __init__(self, url: str, table: str) -> None:
        self.place = url, table

    def require_ready(self, result_schema: pa.Schema) -> None:
        if "row" not in result_schema.names:
            raise InputError("rows are counted by their numbers")

    def load(self, job_id: str, tables: Iterable[pa.Table]) -> int:
        return sum(table.num_rows for table in tables)


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a test registers from the others."""
    known = {name: sink_named(name) for name in ("parquet", "csv", "jsonl")}
    monkeypatch.setattr(sinks, "_FILE_SINKS", Extensions("result format"))
    monkeypatch.setattr(sinks, "_TABLE_SINKS", Extensions("kind of database"))
    for sink in known.values():
        register_sink(sink)


def test_a_format_from_outside_is_written_and_read_like_ours() -> None:
    register_sink(Feather())
    table = pa.table({"row": pa.array([0, 1]), "uri": ["a", "b"]})
    content = sink_named("feather").encode(table)
    assert read_columns(content, "feather").to_pydict() == table.to_pydict()
    assert TypeAdapter(FormatName).validate_python("feather") == "feather"


def test_an_unknown_format_is_refused_with_those_that_are_near() -> None:
    with pytest.raises(UnknownNameError, match=r"No result format is named 'parket'.*parquet"):
        sink_named("parket")
    with pytest.raises(ValidationError, match="'feather' is none of parquet, csv, jsonl"):
        TypeAdapter(FormatName).validate_python("feather")


def test_a_table_from_outside_is_found_by_the_scheme_of_its_url() -> None:
    register_table_sink("counter", Counter)
    sink = table_sink("counter+fast://here", "rows")
    assert isinstance(sink, Counter)
    assert sink.place == ("counter+fast://here", "rows")
    assert sink.load("night", [pa.table({"row": [1, 2]})]) == 2
    assert isinstance(table_sink("sqlite:///results.db", "rows"), SqlSink)
    with pytest.raises(InputError, match=r"sqlite:///results\.db or postgresql://"):
        table_sink("oracle://here", "rows")
