"""Callers of the service: their keys, quotas and pins, kept in the organisation's database.

A key is 256 random bits, shown once. The database holds its SHA-256, which is enough for a secret
that nobody chose: there is nothing to guess, so nothing that a slow hash would slow down.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.names import require_application_name
from eagleray.database.rows import BadRowError, readable_rows, report_bad_row
from eagleray.database.store import OpenDatabase
from eagleray.database.tables import ApiKeyRow, ApplicationRow, PinRow, ServingChangeRow
from eagleray.serving.audit import Change, note_change, read_changes
from eagleray.serving.routing import Application, Callers, Key

__all__ = ["Applications", "KeyInfo", "NewKey", "key_digest"]

_SUBJECT = "application "  # of changes, before a name
_KEY_START = "er_"
_PREFIX_LENGTH = 11  # of a key, enough to tell an application's keys apart


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made: the one moment at which it can be read."""

    application: str
    key: str


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What is kept of a key.

    Attributes:
        prefix: Its first characters.
        created: UTC.
        expires: UTC; None for never.
        revoked: UTC; None where it is not.
    """

    prefix: str
    created: datetime
    expires: datetime | None
    revoked: datetime | None

    def holds(self, now: datetime) -> bool:
        """Whether the key is accepted."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def key_digest(key: str) -> str:
    """Return what the database keeps of a key: its SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class Applications:
    """The applications of an organisation.

    Args:
        database: Where they are kept.
        who: Is written down with each change.
    """

    def __init__(self, database: OpenDatabase, *, who: str) -> None:
        self._database, self._who = database, who

    # --- applications ---

    def create(self, name: str, *, images_per_second: float | None = None) -> NewKey:
        """Create an application with its first key.

        Raises:
            InputError: It is there already, or the name or the quota is not one.
        """
        require_application_name(name)
        _require_quota(images_per_second)
        with self._database.session() as session:
            if session.get(ApplicationRow, name) is not None:
                raise InputError(
                    f"There is an application {name!r} already; give it another key with "
                    f"`eagleray apps rotate {name}`."
                )
            session.add(
                ApplicationRow(
                    name=name,
                    created=datetime.now(UTC),
                    images_per_second=images_per_second,
                    disabled=False,
                )
            )
            session.flush()
            self._note(session, name, "created" + _quota_words(images_per_second))
            return self._add_key(session, name, None)

    def set_quota(self, name: str, images_per_second: float | None) -> None:
        """Change how many images a second an application may send; None for any number.

        Raises:
            UnknownNameError: No such application.
            InputError: The quota is not above 0.
        """
        _require_quota(images_per_second)
        with self._database.session() as session:
            self._require(session, name).images_per_second = images_per_second
            self._note(session, name, "quota" + (_quota_words(images_per_second) or " removed"))

    def disable(self, name: str, *, disabled: bool = True) -> None:
        """Refuse an application's keys, or accept them again.

        Raises:
            UnknownNameError: No such application.
        """
        with self._database.session() as session:
            self._require(session, name).disabled = disabled
            self._note(session, name, "disabled" if disabled else "enabled")

    def delete(self, name: str) -> None:
        """Remove an application with its keys and pins; the record of changes stays.

        Raises:
            UnknownNameError: No such application.
        """
        with self._database.session() as session:
            row = self._require(session, name)
            for table in (ApiKeyRow, PinRow):
                session.execute(sa.delete(table).where(table.application == name))
            session.delete(row)
            self._note(session, name, "deleted")

    def names(self) -> list[str]:
        """Return the names of all applications, sorted."""
        with self._database.session() as session:
            return sorted(session.scalars(sa.select(ApplicationRow.name)))

    def get(self, name: str) -> Application:
        """Return an application.

        Raises:
            UnknownNameError: No such application.
        """
        with self._database.session() as session:
            row = self._require(session, name)
            pins = session.scalars(sa.select(PinRow).where(PinRow.application == name))
            return Application(name, row.images_per_second, {pin.model: pin.target for pin in pins})

    def disabled(self) -> set[str]:
        """Return the names of the applications whose keys are refused."""
        with self._database.session() as session:
            query = sa.select(ApplicationRow.name).where(ApplicationRow.disabled)
            return set(session.scalars(query))

    # --- keys ---

    def rotate(self, name: str, *, keep_old: timedelta = timedelta(0)) -> NewKey:
        """Make a new key; the older ones end after a time in which callers can change over.

        Raises:
            UnknownNameError: No such application.
        """
        with self._database.session() as session:
            self._require(session, name)
            end = datetime.now(UTC) + keep_old
            for row in session.scalars(sa.select(ApiKeyRow).where(ApiKeyRow.application == name)):
                if row.revoked is None and (row.expires is None or row.expires > end):
                    row.expires = end
            self._note(session, name, f"key rotated, older keys end {end:%Y-%m-%d %H:%M} UTC")
            return self._add_key(session, name, None)

    def revoke(self, name: str, prefix: str) -> None:
        """Refuse a key from now on.

        Raises:
            UnknownNameError: No such application, or none of its keys begins so.
        """
        with self._database.session() as session:
            self._require(session, name)
            rows = list(session.scalars(sa.select(ApiKeyRow).where(ApiKeyRow.application == name)))
            found = [row for row in rows if row.prefix == prefix]
            if not found:
                known = [row.prefix for row in rows]
                raise UnknownNameError(f"key of application {name!r}", prefix, known)
            for row in found:
                row.revoked = datetime.now(UTC)
            self._note(session, name, f"key {prefix} revoked")

    def keys(self, name: str) -> list[KeyInfo]:
        """Return what is known of an application's keys, oldest first.

        Raises:
            UnknownNameError: No such application.
        """
        with self._database.session() as session:
            self._require(session, name)
            query = sa.select(ApiKeyRow).where(ApiKeyRow.application == name)
            return [
                KeyInfo(row.prefix, row.created, row.expires, row.revoked)
                for row in session.scalars(query.order_by(ApiKeyRow.created))
            ]

    # --- pins ---

    def pin(self, name: str, model: str, target: str) -> None:
        """Give an application its own version of a model: a number, or an alias.

        Raises:
            UnknownNameError: No such application.
        """
        with self._database.session() as session:
            self._require(session, name)
            session.merge(PinRow(application=name, model=model, target=target))
            self._note(session, name, f"pinned to {model} {target}")

    def unpin(self, name: str, model: str) -> None:
        """Give an application what everybody gets.

        Raises:
            UnknownNameError: No such application, or it is not pinned on that model.
        """
        with self._database.session() as session:
            self._require(session, name)
            row = session.get(PinRow, (name, model))
            if row is None:
                pins = session.scalars(sa.select(PinRow.model).where(PinRow.application == name))
                raise UnknownNameError(f"pin of application {name!r}", model, list(pins))
            session.delete(row)
            self._note(session, name, f"no longer pinned on {model}")

    # --- all at once ---

    def read(self) -> Callers:
        """Return who may ask; a row that is damaged is left out, and lets nobody in.

        Raises:
            OutageError: The database does not answer.
        """
        with self._database.reading() as session:
            rows = {row.name: row for row in _sound_applications(session)}
            pins: dict[str, dict[str, str]] = {name: {} for name in rows}
            for pin in readable_rows(session, PinRow):
                if pin.application in pins and isinstance(pin.target, str):
                    pins[pin.application][pin.model] = pin.target
            enabled = {row.name for row in rows.values() if row.disabled is False}
            keys = {
                row.digest: Key(row.application, row.expires)
                for row in readable_rows(session, ApiKeyRow, ApiKeyRow.revoked.is_(None))
                if row.application in enabled
            }
            last_change = session.scalar(
                sa.select(sa.func.max(ServingChangeRow.number)).where(
                    ServingChangeRow.subject.startswith(_SUBJECT)
                )
            )
        applications = {
            name: Application(name, row.images_per_second, pins[name]) for name, row in rows.items()
        }
        return Callers(applications, keys, last_change or 0)

    def changes(self, name: str) -> Sequence[Change]:
        """Return an application's changes, oldest first."""
        with self._database.session() as session:
            return read_changes(session, _subject(name))

    # --- steps ---

    def _require(self, session: Session, name: str) -> ApplicationRow:
        row = session.get(ApplicationRow, name)
        if row is None:
            known = session.scalars(sa.select(ApplicationRow.name))
            raise UnknownNameError("application", name, list(known))
        return row

    def _add_key(self, session: Session, name: str, expires: datetime | None) -> NewKey:
        key = _KEY_START + secrets.token_urlsafe(32)
        session.add(
            ApiKeyRow(
                digest=key_digest(key),
                application=name,
                prefix=key[:_PREFIX_LENGTH],
                created=datetime.now(UTC),
                expires=expires,
                revoked=None,
            )
        )
        return NewKey(name, key)

    def _note(self, session: Session, name: str, what: str) -> None:
        note_change(session, subject=_subject(name), what=what, who=self._who)


def _subject(name: str) -> str:
    return f"{_SUBJECT}{name}"


def _sound_applications(session: Session) -> Iterator[ApplicationRow]:
    for row in readable_rows(session, ApplicationRow):
        quota: Any = row.images_per_second  # SQLite keeps what it is given
        if quota is None or isinstance(quota, (int, float)):
            yield row
        else:
            report_bad_row(ApplicationRow, row.name, BadRowError(f"a quota of {quota!r}"))


def _require_quota(images_per_second: float | None) -> None:
    if images_per_second is not None and not 0 < images_per_second < float("inf"):
        raise InputError(f"A quota is a number of images a second above 0, not {images_per_second}")


def _quota_words(images_per_second: float | None) -> str:
    return "" if images_per_second is None else f" of {images_per_second:g} images a second"
