"""Opens the organisation's database, creating or migrating its tables, and gives sessions on it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.orm import Session

from eagleray.core.errors import DatabaseReplacedError, InputError, OutageError, UserError
from eagleray.core.settings import Settings
from eagleray.database.connection import Database, lock_for_connection, lock_for_transaction
from eagleray.database.tables import IdentityRow

__all__ = ["DatabaseTimeouts", "OpenDatabase", "known_database", "open_database"]

VERSION_TABLE = "eagleray_schema"
"""Alembic's version table; its default name may belong to MLflow in the same database."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_PUBLIC = "The service's database does not answer now; try again later."


@dataclass(frozen=True, slots=True)
class DatabaseTimeouts:
    """Seconds to wait for the database.

    Attributes:
        write: Seconds that a writing transaction waits for others.
        read: Seconds that a reading transaction waits for others that block readers too.
        lock: Seconds to wait for a lock of `OpenDatabase.lock`.
    """

    write: float = 60.0
    read: float = 10.0
    lock: float = 600.0  # the process that has it may be downloading a large model to check it


@dataclass(frozen=True)
class OpenDatabase:
    """The organisation's database with current tables; it holds no connection between uses.

    Attributes:
        database: The database's location.
        identity: The identity that the database must have; None accepts any.
        timeouts: How long to wait for the database.
    """

    database: Database
    identity: str | None = None
    timeouts: DatabaseTimeouts = DatabaseTimeouts()

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Yield a session in a transaction, which is committed at the end of the block.

        Raises:
            OutageError: If the database does not answer or refuses.
            DatabaseReplacedError: If the database is not the expected one.
        """
        with (
            self._connected(self.timeouts.write) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            self._require_identity(session)
            yield session

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """Yield a read-only session, which waits for no writer and creates no file.

        Raises:
            OutageError: If the database does not answer or does not exist.
            DatabaseReplacedError: If the database is not the expected one.
        """
        with (
            self._connected(self.timeouts.read, only_reads=True) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            self._require_identity(session)
            yield session

    @contextlib.contextmanager
    def lock(self, purpose: str) -> Iterator[Session]:
        """Hold the lock of a purpose for the time of the block, and yield a session.

        The lock is released with the process, however that ends. The caller begins any number of
        transactions.

        Raises:
            OutageError: If the database does not answer or refuses, or another process keeps the
                lock for too long.
            DatabaseReplacedError: If the database is not the expected one.
        """
        self._require_file()
        with (
            self._locked(purpose),
            self._connected(self.timeouts.lock) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            if self.identity is not None:
                with session.begin():
                    self._require_identity(session)
            with connection.begin():
                lock_for_connection(connection, purpose)
            yield session

    def read_identity(self) -> str:
        """Return the identity of the database, a random id that was drawn when it was made.

        Raises:
            OutageError: If the database does not answer, or has no identity.
        """
        with self.reading() as session:
            found = _identity(session)
        if found is None:
            raise self._replaced("is empty")
        return found

    def _require_identity(self, session: Session) -> None:
        """Refuse a database that is not the one that the service started with.

        Raises:
            DatabaseReplacedError: If it is empty, or another one.
        """
        if self.identity is None:
            return
        found = _identity(session)
        if found != self.identity:
            raise self._replaced("is empty" if found is None else "was replaced by another one")

    def _replaced(self, how: str) -> DatabaseReplacedError:
        return DatabaseReplacedError(
            f"The database {self.database.place} {how}; put the former one back, or stop the "
            "service and start it again.",
            public=_PUBLIC,
        )

    def _require_file(self) -> None:
        """Refuse a missing SQLite file: SQLite would create an empty one.

        Raises:
            OutageError: If the file does not exist.
        """
        if not self.database.is_postgresql and not Path(self.database.place).exists():
            raise OutageError(
                f"The database {self.database.place} no longer exists; put it back, or check "
                "EAGLERAY_DATABASE_URL.",
                public=_PUBLIC,
            )

    @contextlib.contextmanager
    def _locked(self, purpose: str) -> Iterator[None]:
        """Hold a lock file beside a SQLite database; PostgreSQL has advisory locks."""
        if self.database.is_postgresql:
            yield
            return
        folder = Path(f"{self.database.place}-locks")
        seconds = self.timeouts.lock
        try:
            folder.mkdir(exist_ok=True)
            name = hashlib.sha256(purpose.encode()).hexdigest()[:16]
            lock = FileLock(folder / f"{name}.lock", timeout=seconds)
            lock.acquire()
        except Timeout:
            raise OutageError(
                f"Another command has held the lock for {_duration(seconds)} ({purpose}); wait for "
                "it to end, or stop it.",
                public="Another request of this kind takes long; try again later.",
            ) from None
        except OSError as error:
            raise OutageError(
                f"Cannot lock a file in {folder} ({error.strerror or error}); check that you may "
                "write there.",
                public=_PUBLIC,
            ) from None
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _connected(
        self, lock_timeout: float, *, makes_file: bool = False, only_reads: bool = False
    ) -> Iterator[sa.Connection]:
        if not makes_file:
            self._require_file()
        disk = "" if self.database.is_postgresql else ", and that its disk has room"
        with self.database.connected(
            lock_timeout=lock_timeout,
            kind=partial(OutageError, public=_PUBLIC),
            sentence=lambda reason: (
                f"The database {self.database.place} does not answer as it should ({reason}); "
                f"check EAGLERAY_DATABASE_URL{disk}."
            ),
            makes_file=makes_file,
            only_reads=only_reads,
        ) as connection:
            yield connection


def open_database(settings: Settings) -> OpenDatabase:
    """Open the database that the settings name, and migrate its tables to this version.

    Any number of processes may open a new database at the same time.

    Raises:
        OutageError: If the database does not answer, or refuses.
        UserError: If a newer Eagleray has migrated the database.
    """
    if settings.database_url is None:
        settings.make_home()
    opened = OpenDatabase(_database(settings))
    with (
        opened._connected(opened.timeouts.write, makes_file=True) as connection,
        connection.begin(),
    ):
        lock_for_transaction(connection, "migrate")
        _migrate(connection, opened.database.place)
    return opened


def known_database(
    settings: Settings, identity: str, *, timeouts: DatabaseTimeouts | None = None
) -> OpenDatabase:
    """Return the database that the settings name; each use checks that it has this identity.

    The database is not opened yet, and no file is ever created.

    Args:
        settings: The settings with the database's URL.
        identity: The result of `OpenDatabase.read_identity`.
        timeouts: How long to wait for the database.

    Raises:
        InputError: If the URL is not valid.
    """
    return OpenDatabase(_database(settings), identity, timeouts or DatabaseTimeouts())


def _database(settings: Settings) -> Database:
    if settings.database_url is None:
        url = f"sqlite:///{settings.home_folder / 'eagleray.db'}"
    else:
        url = settings.database_url
    try:
        return Database.parse(url)
    except InputError as error:
        raise InputError(f"EAGLERAY_DATABASE_URL: {error}") from None


def _identity(session: Session) -> str | None:
    """Return the identity of a database; None if it has none, such as an empty one."""
    if not sa.inspect(session.connection()).has_table(IdentityRow.__tablename__):
        return None
    return session.scalars(sa.select(IdentityRow.id).limit(1)).first()


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _migrate(connection: sa.Connection, place: str) -> None:
    """Run the migrations that this database lacks, in the open transaction.

    Raises:
        UserError: If the database has migrations of a newer version.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes |= {"connection": connection, "version_table": VERSION_TABLE}
    options = {"version_table": VERSION_TABLE}
    present = MigrationContext.configure(connection, opts=options).get_current_revision()
    known = [step.revision for step in ScriptDirectory.from_config(config).walk_revisions()]
    if present is not None and present not in known:
        raise UserError(
            f"The database {place} was migrated by a newer Eagleray (to {present}); install that "
            "version, or set EAGLERAY_DATABASE_URL to another database."
        )
    if present != known[0]:  # the newest comes first
        command.upgrade(config, "head")
