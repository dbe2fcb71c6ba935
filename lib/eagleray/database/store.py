"""The organisation's database, opened: its tables are made or brought up to date on the way."""

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
from eagleray.database.connection import Database, take_turn, wait_for_turn
from eagleray.database.tables import IdentityRow

__all__ = ["OpenDatabase", "Patience", "known_database", "open_database"]

VERSION_TABLE = "eagleray_schema"
"""Not alembic's own name for it: MLflow's tables may be in the same database."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_PUBLIC = "The service's database does not answer now; try again later."


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that the database is waited for.

    Attributes:
        transaction: For those of others, while one's own begins or goes on.
        reading: For those of others that keep even readers out.
        turn: For everybody else who has the same turn.
    """

    transaction: float = 60.0
    reading: float = 10.0
    turn: float = 600.0  # whoever has it may be fetching a large model to check it


@dataclass(frozen=True)
class OpenDatabase:
    """The database with today's tables. It holds no connection between uses.

    Attributes:
        database: Where it is.
        identity: That it must have; None for any.
        patience: How long it is waited for.
    """

    database: Database
    identity: str | None = None
    patience: Patience = Patience()

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Give a session in a transaction, which is kept at the end of the block.

        Raises:
            OutageError: The database does not answer or refuses.
            DatabaseReplacedError: It is another one than it was.
        """
        with (
            self._connected(self.patience.transaction) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            self._require_identity(session)
            yield session

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """Give a session that only reads, which waits for no writer and makes no file.

        Raises:
            OutageError: The database does not answer, or is not there.
            DatabaseReplacedError: It is another one than it was.
        """
        with (
            self._connected(self.patience.reading, only_reads=True) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            self._require_identity(session)
            yield session

    @contextlib.contextmanager
    def turn(self, purpose: str) -> Iterator[Session]:
        """Wait until nobody else has the turn of this purpose, and keep it to the block's end.

        It ends with the process, however that ends. Transactions are the caller's, any number.

        Raises:
            OutageError: The database does not answer or refuses, or others do not come to an end.
            DatabaseReplacedError: It is another one than it was.
        """
        self._require_file()
        with (
            self._locked(purpose),
            self._connected(self.patience.turn) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            if self.identity is not None:
                with session.begin():
                    self._require_identity(session)
            with connection.begin():
                take_turn(connection, purpose)
            yield session

    def read_identity(self) -> str:
        """Return what tells this database from every other one.

        Raises:
            OutageError: The database does not answer, or has no identity.
        """
        with self.reading() as session:
            found = _identity(session)
        if found is None:
            raise self._replaced("is empty")
        return found

    def _require_identity(self, session: Session) -> None:
        """Refuse a database that is not the one that was there when the service started.

        Raises:
            DatabaseReplacedError: It is empty, or another one.
        """
        if self.identity is None:
            return
        found = _identity(session)
        if found != self.identity:
            raise self._replaced("is empty" if found is None else "is another one than it was")

    def _replaced(self, how: str) -> DatabaseReplacedError:
        return DatabaseReplacedError(
            f"The database {self.database.place} {how}; put the one back that was there, or end "
            "the service and start it anew.",
            public=_PUBLIC,
        )

    def _require_file(self) -> None:
        """Refuse a SQLite file that is not there: SQLite would make an empty one.

        Raises:
            OutageError: It is not there.
        """
        if not self.database.is_postgresql and not Path(self.database.place).exists():
            raise OutageError(
                f"There is no database {self.database.place} any more; put it back, or check "
                "EAGLERAY_DATABASE_URL.",
                public=_PUBLIC,
            )

    @contextlib.contextmanager
    def _locked(self, purpose: str) -> Iterator[None]:
        """Keep a lock file beside SQLite; PostgreSQL has locks of its own."""
        if self.database.is_postgresql:
            yield
            return
        folder = Path(f"{self.database.place}-locks")
        seconds = self.patience.turn
        try:
            folder.mkdir(exist_ok=True)
            name = hashlib.sha256(purpose.encode()).hexdigest()[:16]
            lock = FileLock(folder / f"{name}.lock", timeout=seconds)
            lock.acquire()
        except Timeout:
            raise OutageError(
                f"Another command has been at it for {_duration(seconds)} ({purpose}); wait for "
                "its end, or stop it.",
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
        self, patience: float, *, makes_file: bool = False, only_reads: bool = False
    ) -> Iterator[sa.Connection]:
        if not makes_file:
            self._require_file()
        disk = "" if self.database.is_postgresql else ", and that its disk has room"
        with self.database.connected(
            patience=patience,
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
    """Open the database that the settings name, with its tables as this version needs them.

    Any number of processes may open a new one at once.

    Raises:
        OutageError: It does not answer, or refuses.
        UserError: It was made by a newer Eagleray.
    """
    if settings.database_url is None:
        settings.make_home()
    opened = OpenDatabase(_database(settings))
    with (
        opened._connected(opened.patience.transaction, makes_file=True) as connection,
        connection.begin(),
    ):
        wait_for_turn(connection, "migrate")
        _migrate(connection, opened.database.place)
    return opened


def known_database(
    settings: Settings, identity: str, *, patience: Patience | None = None
) -> OpenDatabase:
    """Return the database that the settings name, to be used as long as it is the one it was.

    Nothing is opened yet, and no file is ever made.

    Args:
        settings: Where it is.
        identity: As `OpenDatabase.read_identity` gave it.
        patience: How long it is waited for.

    Raises:
        InputError: The settings name no database.
    """
    return OpenDatabase(_database(settings), identity, patience or Patience())


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
    """Return the identity of a database; None where it has none, as an empty one."""
    if not sa.inspect(session.connection()).has_table(IdentityRow.__tablename__):
        return None
    return session.scalars(sa.select(IdentityRow.id).limit(1)).first()


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _migrate(connection: sa.Connection, place: str) -> None:
    """Run the steps that this database lacks, in the transaction that is open.

    Raises:
        UserError: It has steps that are not known here.
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
            f"The database {place} was made by a newer Eagleray (step {present}); install that "
            "version, or set EAGLERAY_DATABASE_URL to another database."
        )
    if present != known[0]:  # the newest comes first
        command.upgrade(config, "head")
