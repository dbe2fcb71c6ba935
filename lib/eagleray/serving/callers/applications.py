"""Stores the callers of the service in the database: their keys, quotas and pins.

A key is 256 random bits, shown once. The database holds its SHA-256. A slow hash is not needed: it
only protects secrets that can be guessed, and these are random.
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
from eagleray.database.tables import (
    ApiKeyRow,
    ApplicationRow,
    GrantRow,
    PinRow,
    ServingChangeRow,
    WebhookRow,
)
from eagleray.serving.audit import Change, read_changes, record_change
from eagleray.serving.callers.webhook_policy import webhook_policy
from eagleray.serving.versions.routing import Application, Callers, Key, Webhook
from eagleray.tasks.limits import CountLimit

__all__ = ["Applications", "KeyInfo", "NewKey", "key_digest"]

_SUBJECT = "application "  # prefix of the subject of changes
_KEY_START = "er_"
_WEBHOOK_START = "whsec_"
_PREFIX_LENGTH = 11  # characters that tell an application's keys apart


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key, which can be read only now."""

    application: str
    key: str


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A stored key.

    Attributes:
        prefix: First characters of the key.
        created: Time of creation, in UTC.
        expires: Time of expiry, in UTC; None for never.
        revoked: Time of revocation, in UTC; None if it is not revoked.
    """

    prefix: str
    created: datetime
    expires: datetime | None
    revoked: datetime | None

    def is_valid(self, now: datetime) -> bool:
        """Whether the key is accepted."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def key_digest(key: str) -> str:
    """Return the SHA-256 of a key in hex, as stored in the database."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class Applications:
    """The applications in the database.

    Args:
        database: The organisation's database.
        actor: User who is recorded with each change.
    """

    def __init__(self, database: OpenDatabase, *, actor: str) -> None:
        self._database, self._actor = database, actor

    # --- applications ---

    def create(self, name: str, *, images_per_second: float | None = None) -> NewKey:
        """Create an application with its first key.

        Raises:
            InputError: If it exists already, or the name or the quota is invalid.
        """
        require_application_name(name)
        _require_quota(images_per_second)
        with self._database.session() as session:
            if session.get(ApplicationRow, name) is not None:
                raise InputError(
                    f"Application {name!r} exists already; create another key for it with "
                    f"`eagleray apps rotate {name}`."
                )
            session.add(
                ApplicationRow(
                    name=name,
                    created=datetime.now(UTC),
                    images_per_second=images_per_second,
                    disabled=False,
                    max_priority=0,
                )
            )
            session.flush()
            self._record(session, name, "created" + _quota_text(images_per_second))
            return self._add_key(session, name, None)

    def set_quota(self, name: str, images_per_second: float | None) -> None:
        """Change the quota of an application in images a second; None for no limit.

        Raises:
            UnknownNameError: If there is no such application.
            InputError: If the quota is not above 0.
        """
        _require_quota(images_per_second)
        with self._database.session() as session:
            self._require(session, name).images_per_second = images_per_second
            self._record(session, name, "quota" + (_quota_text(images_per_second) or " removed"))

    def set_max_priority(self, name: str, priority: int) -> None:
        """Change the highest priority that jobs of an application may have.

        Raises:
            UnknownNameError: If there is no such application.
        """
        with self._database.session() as session:
            self._require(session, name).max_priority = priority
            self._record(session, name, f"jobs of priority up to {priority}")

    def max_priority(self, name: str) -> int:
        """Return the highest priority of an application's jobs; 0 for callers without one."""
        with self._database.reading() as session:
            row = session.get(ApplicationRow, name)
            return 0 if row is None else row.max_priority

    def disable(self, name: str, *, disabled: bool = True) -> None:
        """Disable an application, so that its keys are refused, or enable it again.

        Raises:
            UnknownNameError: If there is no such application.
        """
        with self._database.session() as session:
            self._require(session, name).disabled = disabled
            self._record(session, name, "disabled" if disabled else "enabled")

    def delete(self, name: str) -> None:
        """Remove an application with its keys and pins; the record of changes stays.

        Raises:
            UnknownNameError: If there is no such application.
        """
        with self._database.session() as session:
            row = self._require(session, name)
            for table in (ApiKeyRow, PinRow, GrantRow, WebhookRow):
                session.execute(sa.delete(table).where(table.application == name))
            session.delete(row)
            self._record(session, name, "deleted")

    def names(self) -> list[str]:
        """Return the names of all applications, sorted."""
        with self._database.session() as session:
            return sorted(session.scalars(sa.select(ApplicationRow.name)))

    def get(self, name: str) -> Application:
        """Return an application.

        Raises:
            UnknownNameError: If there is no such application.
        """
        with self._database.session() as session:
            row = self._require(session, name)
            pins = session.scalars(sa.select(PinRow).where(PinRow.application == name))
            webhook = session.get(WebhookRow, name)
            return Application(
                name,
                row.images_per_second,
                {pin.model: pin.target for pin in pins},
                None if webhook is None else _webhook(webhook),
            )

    def disabled(self) -> set[str]:
        """Return the names of the applications whose keys are refused."""
        with self._database.session() as session:
            query = sa.select(ApplicationRow.name).where(ApplicationRow.disabled)
            return set(session.scalars(query))

    # --- keys ---

    def rotate(self, name: str, *, keep_old: timedelta = timedelta(0)) -> NewKey:
        """Create a new key, and let the older keys expire after a time for callers to switch.

        Raises:
            UnknownNameError: If there is no such application.
        """
        with self._database.session() as session:
            self._require(session, name)
            end = datetime.now(UTC) + keep_old
            for row in session.scalars(sa.select(ApiKeyRow).where(ApiKeyRow.application == name)):
                if row.revoked is None and (row.expires is None or row.expires > end):
                    row.expires = end
            self._record(session, name, f"key rotated, older keys end {end:%Y-%m-%d %H:%M} UTC")
            return self._add_key(session, name, None)

    def revoke(self, name: str, prefix: str) -> None:
        """Revoke a key.

        Raises:
            UnknownNameError: If there is no such application, or no such key of it.
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
            self._record(session, name, f"key {prefix} revoked")

    def keys(self, name: str) -> list[KeyInfo]:
        """Return the keys of an application, oldest first.

        Raises:
            UnknownNameError: If there is no such application.
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
        """Pin an application to a version of a model: a number or an alias.

        Raises:
            UnknownNameError: If there is no such application.
        """
        with self._database.session() as session:
            self._require(session, name)
            session.merge(PinRow(application=name, model=model, target=target))
            self._record(session, name, f"pinned to {model} {target}")

    def unpin(self, name: str, model: str) -> None:
        """Remove the pin of an application, so that the model's route applies to it.

        Raises:
            UnknownNameError: If there is no such application or pin.
        """
        with self._database.session() as session:
            self._require(session, name)
            row = session.get(PinRow, (name, model))
            if row is None:
                pins = session.scalars(sa.select(PinRow.model).where(PinRow.application == name))
                raise UnknownNameError(f"pin of application {name!r}", model, list(pins))
            session.delete(row)
            self._record(session, name, f"no longer pinned on {model}")

    # --- webhooks ---

    def set_webhook(self, name: str, url: str, limits: Sequence[str]) -> str:
        """Give an application a webhook in place of the one that it has, and return its secret.

        Args:
            name: Name of the application.
            url: The URL; its addresses are checked when it is posted to.
            limits: Numbers of objects that are to be told of, such as `person>10`.

        Raises:
            UnknownNameError: If there is no such application.
            InputError: If the URL or a limit is invalid, or there is no limit.
        """
        host = webhook_policy(()).target(url).host
        if not limits:
            raise InputError("A webhook needs a limit; name one, such as --limit 'person>10'.")
        try:
            written = [str(CountLimit.parse(text)) for text in limits]
        except ValueError as error:
            raise InputError(f"{error}.") from None
        secret = _WEBHOOK_START + secrets.token_urlsafe(32)
        with self._database.session() as session:
            self._require(session, name)
            session.merge(WebhookRow(application=name, url=url, secret=secret, limits=written))
            self._record(session, name, f"webhook to {host} for {', '.join(written)}")
        return secret

    def remove_webhook(self, name: str) -> None:
        """Remove the webhook of an application.

        Raises:
            UnknownNameError: If there is no such application.
            InputError: If it has no webhook.
        """
        with self._database.session() as session:
            self._require(session, name)
            row = session.get(WebhookRow, name)
            if row is None:
                raise InputError(f"Application {name!r} has no webhook.")
            session.delete(row)
            self._record(session, name, "webhook removed")

    # --- all at once ---

    def read(self) -> Callers:
        """Return all applications and valid keys; damaged rows are left out.

        Raises:
            OutageError: If the database does not answer.
        """
        with self._database.reading() as session:
            rows = {row.name: row for row in _valid_applications(session)}
            pins: dict[str, dict[str, str]] = {name: {} for name in rows}
            for pin in readable_rows(session, PinRow):
                if pin.application in pins and isinstance(pin.target, str):
                    pins[pin.application][pin.model] = pin.target
            webhooks = dict(_valid_webhooks(session))
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
            name: Application(name, row.images_per_second, pins[name], webhooks.get(name))
            for name, row in rows.items()
        }
        return Callers(applications, keys, last_change or 0)

    def changes(self, name: str) -> Sequence[Change]:
        """Return the changes to an application, oldest first."""
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

    def _record(self, session: Session, name: str, what: str) -> None:
        record_change(session, subject=_subject(name), change=what, actor=self._actor)


def _subject(name: str) -> str:
    return f"{_SUBJECT}{name}"


def _valid_applications(session: Session) -> Iterator[ApplicationRow]:
    for row in readable_rows(session, ApplicationRow):
        quota: Any = row.images_per_second  # SQLite stores values of any type
        if quota is None or isinstance(quota, (int, float)):
            yield row
        else:
            report_bad_row(ApplicationRow, row.name, BadRowError(f"a quota of {quota!r}"))


def _webhook(row: WebhookRow) -> Webhook:
    """Return a webhook.

    Raises:
        ValueError: If the row is damaged.
    """
    return Webhook(row.url, row.secret, tuple(map(CountLimit.parse, row.limits)))


def _valid_webhooks(session: Session) -> Iterator[tuple[str, Webhook]]:
    for row in readable_rows(session, WebhookRow):
        try:
            yield row.application, _webhook(row)
        except (ValueError, TypeError) as error:
            report_bad_row(WebhookRow, row.application, error)


def _require_quota(images_per_second: float | None) -> None:
    if images_per_second is not None and not 0 < images_per_second < float("inf"):
        raise InputError(
            f"A quota is a number of images a second above 0, not {images_per_second}."
        )


def _quota_text(images_per_second: float | None) -> str:
    return "" if images_per_second is None else f" of {images_per_second:g} images a second"
