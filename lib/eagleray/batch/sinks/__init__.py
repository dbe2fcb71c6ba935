"""Registers the sinks of a batch job: formats of its result files, and tables outside of them.

A file sink encodes the results of shards, which are Parquet, as the files that the commit lists, so
that readers see all of them or none. A table sink takes the committed rows afterwards, and replaces
those that it has of the same job.

    register_sink(Feather())                        eagleray predict … --format feather
    register_table_sink("duckdb", DuckTable.parse)  eagleray predict … --sql duckdb:///results.db
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Protocol, get_args

import pyarrow as pa
from pydantic import AfterValidator

from eagleray.core.errors import InputError
from eagleray.core.extensions import Extensions
from eagleray.core.types import OutputFormat
from eagleray.io.arrow_files import column_names, decode_table, encode_table

__all__ = [
    "FileSink",
    "FormatName",
    "TableSink",
    "register_sink",
    "register_table_sink",
    "sink_named",
    "table_sink",
]


class FileSink(Protocol):
    """A format of result files."""

    @property
    def name(self) -> str:
        """Name that `--format` takes; also the extension of the files, without its dot."""
        ...

    def encode(self, table: pa.Table) -> bytes:
        """Encode rows as the bytes of one file."""
        ...

    def column_names(self, content: bytes) -> list[str]:
        """Return the names of a file's columns, in order."""
        ...

    def decode(self, content: bytes, schema: pa.Schema) -> pa.Table:
        """Read some columns of a file.

        Args:
            content: Bytes of the file.
            schema: The columns, with the types that they had when they were encoded.

        Raises:
            ValueError: If the file is damaged; `OSError` and `KeyError` may say so as well.
        """
        ...


class TableSink(Protocol):
    """A table outside of the output that the results go into as well."""

    def require_ready(self, result_schema: pa.Schema) -> None:
        """Check that rows can be put into the table, before the work begins.

        Raises:
            InputError: If they cannot.
        """
        ...

    def load(self, job_id: str, tables: Iterable[pa.Table]) -> int:
        """Put all rows of a job into the table, in place of those that it has of the job.

        Args:
            job_id: Names the job.
            tables: The rows, file by file. Only one table is in memory at a time.

        Returns:
            Number of rows.

        Raises:
            JobFailedError: If the table does not take them; it then has what it had before.
        """
        ...


_FILE_SINKS: Extensions[FileSink] = Extensions("result format")
_TABLE_SINKS: Extensions[Callable[[str, str], TableSink]] = Extensions("kind of database")


def register_sink(sink: FileSink) -> None:
    """Make a format of result files known by its name."""
    _FILE_SINKS.register(sink.name, sink)


def sink_named(name: str) -> FileSink:
    """Return a format of result files.

    Raises:
        UnknownNameError: If there is no such format.
    """
    return _FILE_SINKS.get(name)


def register_table_sink(scheme: str, parse: Callable[[str, str], TableSink]) -> None:
    """Make a kind of table known by the scheme of its URLs.

    Args:
        scheme: Text before the `:` or the `+` of the URLs, in lower case.
        parse: Makes the sink from a URL and the name of a table, without connecting.
    """
    _TABLE_SINKS.register(scheme, parse)


def table_sink(url: str, table: str) -> TableSink:
    """Return the table that a URL and a name stand for; no connection is made.

    Raises:
        InputError: If they cannot be read, or a driver is missing.
    """
    from eagleray.batch.sinks.sql import SqlSink  # SQLAlchemy takes a while to import

    scheme = url.partition(":")[0].partition("+")[0].lower()
    parse = _TABLE_SINKS.find(scheme) or SqlSink.parse
    return parse(url, table)


def _known_format(name: str) -> str:
    try:
        names = _FILE_SINKS.names()
    except InputError as error:
        raise ValueError(str(error)) from None
    if name not in names:
        raise ValueError(f"{name!r} is none of {', '.join(names)}")
    return name


FormatName = Annotated[str, AfterValidator(_known_format)]
"""Name of a registered format of result files, as a field of a pydantic model."""


@dataclass(frozen=True, slots=True)
class _ArrowFiles:
    """Parquet, CSV or JSON lines, as `eagleray.io.arrow_files` writes them."""

    name: OutputFormat

    def encode(self, table: pa.Table) -> bytes:
        return encode_table(table, self.name)

    def column_names(self, content: bytes) -> list[str]:
        return column_names(content, self.name)

    def decode(self, content: bytes, schema: pa.Schema) -> pa.Table:
        return decode_table(content, self.name, schema)


for _name in get_args(OutputFormat):
    register_sink(_ArrowFiles(_name))
