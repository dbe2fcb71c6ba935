"""The organisation's database, opened: its tables are made or brought up to date on the way."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.orm import Session

from eagleray.database.connection import Database, take_turn, wait_for_turn
from eagleray.errors import InputError, UserError
from eagleray.settings import Settings

__all__ = ["OpenDatabase", "open_database"]

VERSION_TABLE = "eagleray_schema"
"""Not alembic's own name for it: MLflow's tables may be in the same database."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_SECONDS_FOR_A_TRANSACTION = 60.0
_SECONDS_FOR_A_TURN = 600.0  # whoever has it may be fetching a large model to check it


@dataclass(frozen=True)
class OpenDatabase:
    """The database with today's tables. It holds no connection between uses.

    Attributes:
        database: Where it is.
    """

    database: Database

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Give a session in a transaction, which is kept at the end of the block.

        Raises:
            UserError: The database does not answer or refuses.
        """
        with (
            self._connected(_SECONDS_FOR_A_TRANSACTION) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextlib.contextmanager
    def turn(self, purpose: str) -> Iterator[Session]:
        """Wait until nobody else has the turn of this purpose, and keep it to the block's end.

        It ends with the process, however that ends. Transactions are the caller's, any number.

        Raises:
            UserError: The database does not answer or refuses, or others do not come to an end.
        """
        with (
            self._locked(purpose),
            self._connected(_SECONDS_FOR_A_TURN) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            with connection.begin():
                take_turn(connection, purpose)
            yield session

    @contextlib.contextmanager
    def _locked(self, purpose: str) -> Iterator[None]:
        """Keep a lock file beside SQLite; PostgreSQL has locks of its own."""
        if self.database.is_postgresql:
            yield
            return
        folder = Path(f"{self.database.place}-locks")
        try:
            folder.mkdir(exist_ok=True)
            name = hashlib.sha256(purpose.encode()).hexdigest()[:16]
            lock = FileLock(folder / f"{name}.lock", timeout=_SECONDS_FOR_A_TURN)
            lock.acquire()
        except Timeout:
            raise UserError(
                f"Another command has been at it for {_SECONDS_FOR_A_TURN / 60:.0f} minutes "
                f"({purpose}); wait for its end, or stop it."
            ) from None
        except OSError as error:
            raise UserError(
                f"Cannot lock a file in {folder} ({error.strerror or error}); check that you may "
                "write there."
            ) from None
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _connected(self, patience: float) -> Iterator[sa.Connection]:
        disk = "" if self.database.is_postgresql else ", and that its disk has room"
        with self.database.connected(
            patience=patience,
            kind=UserError,
            sentence=lambda reason: (
                f"The database {self.database.place} does not answer as it should ({reason}); "
                f"check EAGLERAY_DATABASE_URL{disk}."
            ),
        ) as connection:
            yield connection


def open_database(settings: Settings) -> OpenDatabase:
    """Open the database that the settings name, with its tables as this version needs them.

    Any number of processes may open a new one at once.

    Raises:
        UserError: It does not answer, refuses, or was made by a newer Eagleray.
    """
    if settings.database_url is None:
        url = f"sqlite:///{settings.make_home() / 'eagleray.db'}"
    else:
        url = settings.database_url
    try:
        opened = OpenDatabase(Database.parse(url))
    except InputError as error:
        raise InputError(f"EAGLERAY_DATABASE_URL: {error}") from None
    with opened._connected(_SECONDS_FOR_A_TRANSACTION) as connection, connection.begin():
        wait_for_turn(connection, "migrate")
        _migrate(connection, opened.database.place)
    return opened


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
