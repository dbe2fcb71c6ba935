"""Connects to a SQLite file or a PostgreSQL database, and describes failures in one sentence."""

from __future__ import annotations

import contextlib
import hashlib
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.event
import sqlalchemy.exc

from eagleray.core.errors import EaglerayError, InputError
from eagleray.io import storage

__all__ = ["Database", "lock_for_connection", "lock_for_transaction"]

_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_EXAMPLES = "sqlite:///results.db or postgresql://user@host/database"
_ANSWER_SECONDS = 10
_MIN_CONNECT_SECONDS = 2  # libpq takes no less


@dataclass(frozen=True)
class Database:
    """The location of a database; its text and `place` never hold the password.

    Attributes:
        place: The location for messages: a URL without password and options, or a file.
        url: The URL to connect to, with the password.
    """

    place: str
    url: sa.URL = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Database:
        """Parse a URL, without connecting.

        Raises:
            InputError: If the URL is not valid, or the driver for PostgreSQL is missing.
        """
        try:
            parsed = sa.make_url(url)
        except (sqlalchemy.exc.ArgumentError, ValueError):  # either could quote the password
            raise InputError(f"The database URL must look like {_EXAMPLES}.") from None
        driver = _DRIVERS.get(parsed.drivername)
        if driver is None:
            raise InputError(
                f"Databases are SQLite or PostgreSQL, not {parsed.drivername!r}; name one as "
                f"{_EXAMPLES}."
            )
        if driver == "sqlite":
            path = _sqlite_path(parsed)
            return cls(path, sa.URL.create(driver, database=path))
        _require_postgresql(url)
        place = sa.URL.create(
            "postgresql",
            username=parsed.username,
            host=parsed.host,
            port=parsed.port,
            database=parsed.database,
        )
        return cls(place.render_as_string(), parsed.set(drivername=driver))

    @property
    def is_postgresql(self) -> bool:
        """Whether the database is PostgreSQL; otherwise it is SQLite."""
        return self.url.get_backend_name() == "postgresql"

    @contextlib.contextmanager
    def connected(
        self,
        *,
        lock_timeout: float,
        kind: Callable[[str], EaglerayError],
        sentence: Callable[[str], str],
        makes_file: bool = True,
        only_reads: bool = False,
    ) -> Iterator[sa.Connection]:
        """Yield a connection, and turn what the database refuses into one sentence.

        Args:
            lock_timeout: Seconds that a transaction waits for others.
            kind: Makes the error to raise from its sentence.
            sentence: Makes the error's sentence from the database's reason.
            makes_file: Whether to create a missing SQLite file.
            only_reads: Whether nothing is written, so that no writer is waited for. On PostgreSQL
                `lock_timeout` then limits the duration of each statement.

        Raises:
            EaglerayError: If the database refuses; an open transaction is rolled back.
            InputError: If the folder of a SQLite file is missing.
        """
        engine = self._engine(lock_timeout, makes_file=makes_file, only_reads=only_reads)
        dbapi: Any = engine.dialect.loaded_dbapi
        errors = (sqlalchemy.exc.DBAPIError, dbapi.Error)
        try:
            connection = engine.connect()
        except errors as error:
            check = (
                "the host, the port, the user, the password and the name of the database"
                if self.is_postgresql
                else "that it is a file and that you may write it"
            )
            raise kind(
                f"Cannot connect to {self.place} ({_connection_reason(error)}); check {check}."
            ) from None
        try:
            with connection:
                yield connection
        except errors as error:
            raise kind(sentence(_reason(error))) from None

    def _engine(self, lock_timeout: float, *, makes_file: bool, only_reads: bool) -> sa.Engine:
        url, seconds = self.url, min(_ANSWER_SECONDS, lock_timeout)
        begin: Callable[[sa.Connection, float], None]
        if self.is_postgresql:
            arguments: dict[str, Any] = {"client_encoding": "utf8"}
            if "connect_timeout" not in self.url.query:
                arguments["connect_timeout"] = max(_MIN_CONNECT_SECONDS, int(seconds))
            # Each statement must see what others committed while it waited.
            options: dict[str, Any] = {"isolation_level": "READ COMMITTED"}
            begin = _limit_reading if only_reads else _limit_waiting
        else:
            folder = Path(self.place).parent
            if not folder.is_dir():
                raise InputError(
                    f"There is no folder {folder} for the SQLite database; make it first."
                )
            if not makes_file:
                url = _existing_file_url(self.place)
            arguments = {"timeout": seconds}
            options = {}
            begin = _begin_reading if only_reads else _begin_writing
        engine = sa.create_engine(
            url,
            poolclass=sa.NullPool,
            hide_parameters=True,
            connect_args=arguments,
            **options,
        )
        sqlalchemy.event.listen(engine, "begin", lambda connection: begin(connection, lock_timeout))
        return engine


def lock_for_transaction(connection: sa.Connection, purpose: str) -> None:
    """Take the advisory lock of a purpose until the end of the transaction.

    On SQLite this does nothing: it has one writer at a time.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_lock_key(purpose))))


def lock_for_connection(connection: sa.Connection, purpose: str) -> None:
    """Take the advisory lock of a purpose until the connection is closed.

    On SQLite, which has no such locks, this does nothing.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_lock(_lock_key(purpose))))


def _lock_key(purpose: str) -> sa.BindParameter[int]:
    digest = hashlib.sha256(f"eagleray {purpose}".encode()).digest()
    return sa.literal(int.from_bytes(digest[:8], "big", signed=True), sa.BigInteger)


def _sqlite_path(url: sa.URL) -> str:
    """Return the absolute path of a SQLite file.

    Raises:
        InputError: If the URL names no file.
    """
    if url.host or not url.database or url.database.startswith((":memory:", "file:")):
        raise InputError("A SQLite database is a file: write sqlite:///results.db, three slashes.")
    if url.query:
        raise InputError("The URL of a SQLite database takes no options; leave out what follows ?.")
    return storage.absolute(url.database)


def _existing_file_url(path: str) -> sa.URL:
    """Return a URL that has SQLite open an existing file and never create one."""
    options = {"mode": "rw", "uri": "true"}
    return sa.URL.create("sqlite", database=f"file:{urllib.parse.quote(path)}", query=options)


def _require_postgresql(url: str) -> None:
    """Check that the driver for PostgreSQL is installed, and that the URL is not ambiguous.

    Raises:
        InputError: If the driver is missing, or the URL has more than one `@`.
    """
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise InputError(
            "The driver for PostgreSQL is missing; run: pip install 'eagleray[postgresql]'."
        ) from None
    if url.count("@") > 1:  # the rest of a password would be taken for the host, and shown
        raise InputError(
            "The database URL has more than one @; write %40 for each @ of the user, the password "
            "or the name."
        )


def _begin_writing(connection: sa.Connection, lock_timeout: float) -> None:
    """Begin a writing SQLite transaction; Ctrl-C ends the wait for others within seconds."""
    deadline = time.monotonic() + lock_timeout
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except sqlalchemy.exc.OperationalError as error:
            if "locked" not in str(error.orig) or time.monotonic() > deadline:
                raise
        else:
            return


def _begin_reading(connection: sa.Connection, _: float) -> None:
    """Begin a read-only SQLite transaction, which waits for no writer until it reads."""
    connection.exec_driver_sql("PRAGMA query_only = ON")
    connection.exec_driver_sql("BEGIN")


def _limit_waiting(connection: sa.Connection, lock_timeout: float) -> None:
    milliseconds = str(int(lock_timeout * 1000))
    connection.execute(sa.select(sa.func.set_config("lock_timeout", milliseconds, True)))


def _limit_reading(connection: sa.Connection, lock_timeout: float) -> None:
    _limit_waiting(connection, lock_timeout)
    milliseconds = str(int(lock_timeout * 1000))
    connection.execute(sa.select(sa.func.set_config("statement_timeout", milliseconds, True)))
    connection.exec_driver_sql("SET TRANSACTION READ ONLY")


def _reason(error: Exception) -> str:
    """Return the first line of a database's error; the next lines could quote rows."""
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")


def _connection_reason(error: Exception) -> str:
    """Return why connecting failed; the error may have a line for each address tried."""
    cause = getattr(error, "orig", None) or error
    lines = [line for line in str(cause).splitlines() if "failed: " in line]
    text = lines[-1] if lines else _reason(error)
    return text.rpartition("failed: ")[2].removeprefix("FATAL:").strip()
