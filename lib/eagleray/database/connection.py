"""A SQLite file or a PostgreSQL database: its URL, connections, and refusals in one sentence."""

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

__all__ = ["Database", "take_turn", "wait_for_turn"]

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
    """Where tables are. Nothing that is shown of it holds the password.

    Attributes:
        place: The database for a person: a URL without password and options, or a file.
        url: What to connect to, with the password.
    """

    place: str
    url: sa.URL = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Database:
        """Read what a user wrote, without connecting.

        Raises:
            InputError: It cannot be read, or the driver for PostgreSQL is missing.
        """
        try:
            parsed = sa.make_url(url)
        except (sqlalchemy.exc.ArgumentError, ValueError):  # either could quote the password
            raise InputError(f"The database URL must look like {_EXAMPLES}.") from None
        driver = _DRIVERS.get(parsed.drivername)
        if driver is None:
            raise InputError(
                f"Tables go into SQLite or PostgreSQL and not into {parsed.drivername!r}; name a "
                f"database as {_EXAMPLES}."
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
        """Whether it is PostgreSQL; otherwise it is SQLite."""
        return self.url.get_backend_name() == "postgresql"

    @contextlib.contextmanager
    def connected(
        self,
        *,
        patience: float,
        kind: Callable[[str], EaglerayError],
        sentence: Callable[[str], str],
        makes_file: bool = True,
        only_reads: bool = False,
    ) -> Iterator[sa.Connection]:
        """Give a connection, and turn what the database refuses into one sentence.

        Args:
            patience: Seconds that a transaction waits for those of others.
            kind: Makes the error to raise of its sentence.
            sentence: Makes the error's sentence of the reason.
            makes_file: Whether a SQLite file that is missing is made.
            only_reads: Whether nothing is written, so that writers need not be waited for. On
                PostgreSQL the whole of each statement is then over within `patience`.

        Raises:
            EaglerayError: Of that kind; nothing of an open transaction is kept.
            InputError: The folder of a SQLite file is missing.
        """
        engine = self._engine(patience, makes_file=makes_file, only_reads=only_reads)
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

    def _engine(self, patience: float, *, makes_file: bool, only_reads: bool) -> sa.Engine:
        url, seconds = self.url, min(_ANSWER_SECONDS, patience)
        begin: Callable[[sa.Connection, float], None]
        if self.is_postgresql:
            arguments: dict[str, Any] = {"client_encoding": "utf8"}
            if "connect_timeout" not in self.url.query:
                arguments["connect_timeout"] = max(_MIN_CONNECT_SECONDS, int(seconds))
            # Each statement must see what others committed while it waited for them.
            options: dict[str, Any] = {"isolation_level": "READ COMMITTED"}
            begin = _limit_reading if only_reads else _limit_waiting
        else:
            folder = Path(self.place).parent
            if not folder.is_dir():
                raise InputError(
                    f"There is no folder {folder} for the SQLite database; make it first."
                )
            if not makes_file:
                url = _of_a_file_that_is_there(self.place)
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
        sqlalchemy.event.listen(engine, "begin", lambda connection: begin(connection, patience))
        return engine


def wait_for_turn(connection: sa.Connection, purpose: str) -> None:
    """Wait until no other transaction has this turn, and keep it until one's own ends.

    SQLite has one writer at a time as it is, so there this does nothing.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_turn_key(purpose))))


def take_turn(connection: sa.Connection, purpose: str) -> None:
    """Wait as `wait_for_turn` does, and keep the turn until the connection is closed.

    SQLite has nothing of the kind, so there this does nothing.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_lock(_turn_key(purpose))))


def _turn_key(purpose: str) -> sa.BindParameter[int]:
    digest = hashlib.sha256(f"eagleray {purpose}".encode()).digest()
    return sa.literal(int.from_bytes(digest[:8], "big", signed=True), sa.BigInteger)


def _sqlite_path(url: sa.URL) -> str:
    """Return the absolute path of a SQLite file.

    Raises:
        InputError: The URL names none.
    """
    if url.host or not url.database or url.database.startswith((":memory:", "file:")):
        raise InputError("A SQLite database is a file: write sqlite:///results.db, three slashes.")
    if url.query:
        raise InputError("The URL of a SQLite database takes no options; leave out what follows ?.")
    return storage.absolute(url.database)


def _of_a_file_that_is_there(path: str) -> sa.URL:
    """Return a URL under which SQLite opens a file, and makes none."""
    options = {"mode": "rw", "uri": "true"}
    return sa.URL.create("sqlite", database=f"file:{urllib.parse.quote(path)}", query=options)


def _require_postgresql(url: str) -> None:
    """Check that PostgreSQL can be spoken to, and that the URL can be read in one way only.

    Raises:
        InputError: It cannot.
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


def _begin_writing(connection: sa.Connection, patience: float) -> None:
    """Begin a SQLite transaction as its one writer; Ctrl-C ends the wait within seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except sqlalchemy.exc.OperationalError as error:
            if "locked" not in str(error.orig) or time.monotonic() > deadline:
                raise
        else:
            return


def _begin_reading(connection: sa.Connection, _: float) -> None:
    """Begin a SQLite transaction that waits for no writer until it reads; writing is refused."""
    connection.exec_driver_sql("PRAGMA query_only = ON")
    connection.exec_driver_sql("BEGIN")


def _limit_waiting(connection: sa.Connection, patience: float) -> None:
    milliseconds = str(int(patience * 1000))
    connection.execute(sa.select(sa.func.set_config("lock_timeout", milliseconds, True)))


def _limit_reading(connection: sa.Connection, patience: float) -> None:
    _limit_waiting(connection, patience)
    milliseconds = str(int(patience * 1000))
    connection.execute(sa.select(sa.func.set_config("statement_timeout", milliseconds, True)))
    connection.exec_driver_sql("SET TRANSACTION READ ONLY")


def _reason(error: Exception) -> str:
    """Return the first line of what a database says; the next ones could quote rows."""
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")


def _connection_reason(error: Exception) -> str:
    """Return why there is no connection, out of what may be a line for each address tried."""
    cause = getattr(error, "orig", None) or error
    lines = [line for line in str(cause).splitlines() if "failed: " in line]
    text = lines[-1] if lines else _reason(error)
    return text.rpartition("failed: ")[2].removeprefix("FATAL:").strip()
