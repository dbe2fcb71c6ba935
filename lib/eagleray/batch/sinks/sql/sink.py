"""Checks a SQL table before the work, and fills it in one transaction afterwards.

The table has a column `job`, the columns of the result table, and the primary key (`job`, `row`).
`docs/results.md` describes it for those who read it.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.csv
import sqlalchemy as sa

from eagleray.batch.sinks.sql.columns import fits, plain_column, spelling, sql_type
from eagleray.core.errors import InputError, JobFailedError
from eagleray.database.connection import Database, lock_for_transaction

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy.dialects.postgresql.base import PGInspector

__all__ = ["SqlSink"]

_POSTGRESQL_NAME_BYTES = 63
_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class SqlSink:
    """A table of a database, which exists or is created.

    Attributes:
        database: Database that the table is in.
        schema: Schema of the table; None for the database's default.
        name: Name of the table.
        ready_timeout: Seconds to wait for locks of others when the table is checked.
        load_timeout: Seconds to wait for them before a load; another load of millions of rows takes
            minutes.
    """

    database: Database
    schema: str | None
    name: str
    ready_timeout: float = 30.0
    load_timeout: float = 600.0

    @classmethod
    def parse(cls, url: str, table: str) -> SqlSink:
        """Parse a URL and the name of a table, without connecting.

        Args:
            url: As `sqlite:///results.db` or `postgresql://user:password@host/database`. What
                libpq knows by itself (`PGPASSWORD`, `~/.pgpass`) need not be in it.
            table: `name`, or on PostgreSQL `schema.name`.

        Raises:
            InputError: If they cannot be parsed, or the driver for PostgreSQL is missing.
        """
        database = Database.parse(url)
        schema, dot, name = table.rpartition(".")
        parts = [schema, name] if dot else [name]
        if not all(parts) or "." in schema or "\0" in table:
            raise InputError(f"{table!r} is not the name of a table; write name or schema.name.")
        if dot and not database.is_postgresql:
            raise InputError(f"SQLite has no schemas; name a table without a dot, not {table!r}.")
        longest = max(len(part.encode()) for part in parts)
        if database.is_postgresql and longest > _POSTGRESQL_NAME_BYTES:
            raise InputError(f"Names in PostgreSQL have at most 63 bytes; shorten {table!r}.")
        return cls(database, schema if dot else None, name)

    def __str__(self) -> str:
        name = f"{self.schema}.{self.name}" if self.schema else self.name
        return f"table {name} of {self.database.place}"

    def require_ready(self, result_schema: pa.Schema) -> None:
        """Check that rows of a schema can be put into the table.

        A table that is not there is created, tried, and taken back. A SQLite file that is not
        there is made, without content.

        Args:
            result_schema: Schema of the result table, with its column `row`.

        Raises:
            InputError: If the database does not answer or refuses, or the table does not fit.
        """
        table = self._define(result_schema)
        with self.database.connected(
            lock_timeout=self.ready_timeout,
            kind=InputError,
            sentence=lambda reason: (
                f"Results cannot go into {self} ({reason}); fix that, or name another table."
            ),
        ) as connection:
            transaction = connection.begin()
            try:
                self._prepare(connection, table)
            finally:
                transaction.rollback()

    def load(self, job_id: str, tables: Iterable[pa.Table]) -> int:
        """Put all rows of a job into the table, in place of those that it has there.

        Args:
            job_id: Value of the column `job`.
            tables: The result rows, all of one schema. One table is in memory at a time.

        Returns:
            Number of rows. Without any table nothing is done.

        Raises:
            InputError: If the rows do not fit into the table.
            JobFailedError: If the database failed. The table has what it had before or, where the
                connection broke at the very end, all rows of the job.
        """
        stream = iter(tables)
        first = next(stream, None)
        if first is None:
            return 0
        table = self._define(first.schema)
        with self.database.connected(
            lock_timeout=self.load_timeout,
            kind=JobFailedError,
            sentence=lambda reason: (
                f"Job {job_id} was not put into {self} ({reason}); its results are whole where "
                "they were written, and they can be put into a table again."
            ),
        ) as connection:
            with connection.begin():
                self._prepare(connection, table)
            with connection.begin():
                _wait_for_loads_of(job_id, connection, table)
                connection.execute(sa.delete(table).where(table.c.job == job_id))
                return _insert(connection, table, _plain(job_id, itertools.chain([first], stream)))

    def _define(self, schema: pa.Schema) -> sa.Table:
        """Describe the table that holds rows of a schema.

        Raises:
            InputError: If a column cannot be in a SQL table.
        """
        assert "row" in schema.names
        columns = [sa.Column("job", sa.Text(), primary_key=True)]
        for name, column in zip(self._column_names(schema.names), schema, strict=True):
            kind = sql_type(column.type)
            if kind is None:
                raise InputError(
                    f"Column {column.name!r} is of type {column.type}, which no SQL table holds; "
                    "cast it to another type or leave it out."
                )
            key = name == "row"
            always_null = pa.types.is_null(column.type)
            columns.append(
                sa.Column(
                    name,
                    kind,
                    primary_key=key,
                    autoincrement=False,
                    info={"always_null": always_null},
                )
            )
        return sa.Table(self.name, sa.MetaData(), *columns, schema=self.schema)

    def _column_names(self, names: list[str]) -> list[str]:
        """Return the names that columns have in the database, `job` not among them.

        Raises:
            InputError: If one is not a valid name, or two would be the same.
        """
        short_names = names
        if self.database.is_postgresql:  # it cuts long names by itself, without an error
            cut = [name.encode()[:_POSTGRESQL_NAME_BYTES] for name in names]
            short_names = [name.decode(errors="ignore") for name in cut]
        taken: dict[str, str] = {}
        for name, short in zip(names, short_names, strict=True):
            key = short if self.database.is_postgresql else short.lower()
            if not name or "\0" in name:
                raise InputError(f"A column of a SQL table cannot be named {name!r}; rename it.")
            if key == "job":
                raise InputError(
                    f"In {self} the column 'job' tells jobs apart; rename the input's {name!r}."
                )
            if key in taken:
                raise InputError(
                    f"Columns {taken[key]!r} and {name!r} would have the same name in {self}; "
                    "rename one of them."
                )
            taken[key] = name
        return short_names

    def _prepare(self, connection: sa.Connection, table: sa.Table) -> None:
        """Create the table, or check the existing one, and check that it can be filled.

        Raises:
            InputError: If rows do not fit into the existing table.
        """
        if self.database.is_postgresql:
            encoding = connection.execute(sa.text("SHOW server_encoding")).scalar_one()
            if encoding != "UTF8":
                raise InputError(
                    f"{self.database.place} keeps text as {encoding}, which cannot hold every "
                    "name of a file; name a database that was created with ENCODING 'UTF8'."
                )
        lock_for_transaction(connection, "create a table")
        if sa.inspect(connection).has_table(table.name, schema=table.schema):
            self._require_fit(connection, table)
        else:
            table.create(connection, checkfirst=False)
        connection.execute(sa.delete(table).where(sa.false()))
        _insert(connection, table, ())

    def _require_fit(self, connection: sa.Connection, table: sa.Table) -> None:
        """Check that the existing table has the columns and the key that a load needs.

        Raises:
            InputError: If it does not.
        """
        inspector = sa.inspect(connection)
        found = inspector.get_columns(table.name, schema=table.schema)
        present = {column["name"]: column for column in found}
        for column in table.columns:
            needed = spelling(column.type, connection.dialect)
            if column.name not in present:
                raise InputError(
                    f"There is no column {column.name!r} in {self}; add it as {needed}, or name "
                    "another table."
                )
            kind = present.pop(column.name)["type"]
            fitting = column.info.get("always_null") or fits(column.type, kind, connection.dialect)
            if not fitting:
                raise InputError(
                    f"Column {column.name!r} in {self} is {spelling(kind, connection.dialect)} and "
                    f"must be {needed}; change it, or name another table."
                )
        key = inspector.get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]
        if set(key) != {"job", "row"}:
            raise InputError(
                f"The primary key must be (job, row) in {self}, so that no row can be there twice; "
                "change it, or name another table."
            )
        for name, extra in present.items():
            if not extra["nullable"] and extra["default"] is None and "identity" not in extra:
                raise InputError(
                    f"Column {name!r} in {self} wants a value, and results have none for it; give "
                    "it a default, or name another table."
                )


def _wait_for_loads_of(job_id: str, connection: sa.Connection, table: sa.Table) -> None:
    """Wait until no other load of the job into the table is running.

    On PostgreSQL two of them would each remove the rows that they see and insert the same ones,
    and the primary key would end the later one.
    """
    if connection.dialect.name == "postgresql":
        inspector = cast("PGInspector", sa.inspect(connection))
        oid = inspector.get_table_oid(table.name, schema=table.schema)
        lock_for_transaction(connection, f"load {oid} {job_id}")


def _plain(job_id: str, tables: Iterable[pa.Table]) -> Iterator[list[pa.Array]]:
    """Yield some thousand rows at a time as columns of plain values, the job's first."""
    for table in tables:
        for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            if batch.num_rows:
                job = pa.repeat(job_id, batch.num_rows)
                yield [plain_column(column) for column in (job, *batch.columns)]


def _insert(connection: sa.Connection, table: sa.Table, batches: Iterable[list[pa.Array]]) -> int:
    """Insert columns of plain values, in the order of the table's; return how many rows."""
    if connection.dialect.name == "postgresql":
        return _copy(connection, table, batches)
    statement = str(sa.insert(table).compile(dialect=connection.dialect))
    num_rows = 0
    for columns in batches:
        rows = list(zip(*(column.to_pylist() for column in columns), strict=True))
        connection.exec_driver_sql(statement, rows)
        num_rows += len(rows)
    return num_rows


def _copy(connection: sa.Connection, table: sa.Table, batches: Iterable[list[pa.Array]]) -> int:
    """Insert through COPY, which reads CSV as Arrow writes it: unquoted and empty is null."""
    from psycopg import sql

    path = [table.schema, table.name] if table.schema else [table.name]
    names = [column.name for column in table.columns]
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
        sql.Identifier(*path), sql.SQL(", ").join(map(sql.Identifier, names))
    )
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="all_valid")
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    num_rows = 0
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for columns in batches:
            texts = [
                _hexadecimal(values) if isinstance(column.type, sa.LargeBinary) else values
                for column, values in zip(table.columns, columns, strict=True)
            ]
            buffer = io.BytesIO()
            pyarrow.csv.write_csv(pa.RecordBatch.from_arrays(texts, names), buffer, options)
            copy.write(buffer.getvalue())
            num_rows += len(texts[0])
    return num_rows


def _hexadecimal(values: pa.Array) -> pa.Array:
    """Spell bytes as PostgreSQL reads them from text."""
    texts = [None if value is None else rf"\x{value.hex()}" for value in values.to_pylist()]
    return pa.array(texts, pa.large_string())
