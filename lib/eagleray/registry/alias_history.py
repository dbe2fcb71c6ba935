"""The history of a model's aliases: each change with its actor, time, reason and evidence.

A change is written to the database, then made in MLflow, then marked as applied, while a lock keeps
other processes from changing the model. A process that dies on the way leaves a change that is not
applied, which the next change applies first. So the numbers of an alias's changes have no gaps, and
an alias points to the version of its last change unless it was moved in MLflow itself.

`applied` stays false only if the version was deleted in MLflow itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session

from eagleray.core.errors import InputError
from eagleray.database.store import OpenDatabase
from eagleray.database.tables import AliasChangeRow

__all__ = [
    "NO_ALIAS",
    "Action",
    "AliasChange",
    "LockedModel",
    "VersionHistory",
    "VersionStore",
    "version_stack",
]

Action = Literal["promote", "rollback", "set", "register", "delete"]

NO_ALIAS = ""
"""The alias of a change that deletes a version."""


class VersionStore(Protocol):
    """The changes that the history makes in the registry."""

    def alias_target(self, name: str, alias: str) -> int | None:
        """Return the version that an alias points to, if any."""

    def has_version(self, name: str, version: int) -> bool:
        """Whether a version exists."""

    def point_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to an existing version."""

    def remove_version(self, name: str, version: int, files: str | None) -> None:
        """Remove a version, and its package from a folder; repeating it changes nothing."""


@dataclass(frozen=True, slots=True)
class AliasChange:
    """One change of an alias.

    Attributes:
        model: The model's name.
        alias: The alias; empty if the version itself was deleted.
        number: Number of the change, which counts from 1 for each model and alias, without gaps.
        version: The version that the alias points to since then.
        previous: The version that the alias pointed to before, in MLflow; None if it was unset.
        action: `promote`, `rollback`, `set`, `register` or `delete`.
        actor: The user, as the settings name them.
        time: UTC time of the change.
        reason: The actor's reason.
        evidence: The figures that the change is based on, as JSON.
        applied: Whether MLflow has made the change.
    """

    model: str
    alias: str
    number: int
    version: int
    previous: int | None
    action: str
    actor: str
    time: datetime
    reason: str
    evidence: Mapping[str, Any]
    applied: bool

    def as_json(self) -> dict[str, Any]:
        """Return the change as JSON for scripts."""
        return {
            "model": self.model,
            "alias": self.alias,
            "number": self.number,
            "action": self.action,
            "from": self.previous,
            "to": self.version,
            "actor": self.actor,
            "time": self.time.isoformat(timespec="seconds"),
            "reason": self.reason,
            "evidence": dict(self.evidence),
            "applied": self.applied,
        }


class VersionHistory:
    """The changes of all models of a registry.

    Args:
        database: The database that keeps them.
        versions: The registry that they change.
    """

    def __init__(self, database: OpenDatabase, versions: VersionStore) -> None:
        self.database, self._versions = database, versions

    @contextlib.contextmanager
    def lock(self, model: str) -> Iterator[LockedModel]:
        """Lock a model for changes, and apply the change that a dead process has left.

        Raises:
            UserError: If the database or MLflow does not answer.
        """
        with self.database.lock(f"change model {model}") as session:
            locked = LockedModel(session, self._versions, model)
            locked.apply_pending()
            yield locked

    def changes(self, model: str, alias: str | None = None) -> list[AliasChange]:
        """Return the changes of a model, or of one alias of it, by alias and number."""
        with self.database.session() as session:
            return _read(session, model, alias)

    def alias_mismatches(self, model: str) -> dict[str, tuple[int, int | None]]:
        """Find aliases that do not point to the version of their last change.

        Returns:
            For each such alias its version in the history, and its version in MLflow.
        """
        found: dict[str, tuple[int, int | None]] = {}
        for _ in range(2):  # a change that was under way has arrived at the second look
            last = {change.alias: change for change in self.changes(model)}
            now = {
                alias: (change.version, self._versions.alias_target(model, alias))
                for alias, change in last.items()
                if change.applied and alias != NO_ALIAS
            }
            found = {alias: pair for alias, pair in now.items() if pair[0] != pair[1]}
            if not found:
                break
        return found


class LockedModel:
    """A model that is locked for changes by this process."""

    def __init__(self, session: Session, versions: VersionStore, model: str) -> None:
        self._session, self._versions, self._model = session, versions, model

    def alias_target(self, alias: str) -> int | None:
        """Return the version that the alias points to, if any."""
        return self._versions.alias_target(self._model, alias)

    def rollback_targets(self, alias: str) -> list[int]:
        """Return the versions that a rollback can go to, latest first.

        Deleted versions are skipped, and so is the one that the alias points to.
        """
        current = self.alias_target(alias)
        with self._session.begin():
            stack = version_stack(_read(self._session, self._model, alias), current)
        return [
            version
            for version in dict.fromkeys(reversed(stack[:-1]))
            if version != current and self._versions.has_version(self._model, version)
        ]

    def move(
        self,
        alias: str,
        version: int,
        *,
        action: Action,
        actor: str,
        reason: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> AliasChange:
        """Point an alias to a version.

        Raises:
            InputError: If there is no such version.
            UserError: If the database or MLflow does not answer. If it is MLflow, the next change
                of the model applies this one first.
        """
        if not self._versions.has_version(self._model, version):
            raise InputError(f"Model {self._model!r} no longer has version {version}.")
        return self._do(
            alias, version, self.alias_target(alias), action, actor, reason, evidence or {}
        )

    def delete(self, version: int, *, actor: str, reason: str, files: str | None) -> AliasChange:
        """Remove a version that no alias points to.

        Args:
            version: The version's number.
            actor: The user, as the settings name them.
            reason: The actor's reason.
            files: The folder that the version's package is removed from; None keeps the package.
        """
        evidence = {"files": files}
        return self._do(NO_ALIAS, version, None, "delete", actor, reason, evidence)

    def apply_pending(self) -> None:
        """Apply the last change of each alias if it is not applied."""
        with self._session.begin():
            last = {change.alias: change for change in _read(self._session, self._model, None)}
        for change in last.values():
            if change.applied:
                continue
            if change.action == "delete" or self._versions.has_version(self._model, change.version):
                self._apply(change)

    def _do(
        self,
        alias: str,
        version: int,
        previous: int | None,
        action: Action,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any],
    ) -> AliasChange:
        with self._session.begin():
            highest = sa.select(sa.func.max(AliasChangeRow.number)).where(
                AliasChangeRow.model == self._model, AliasChangeRow.alias == alias
            )
            row = AliasChangeRow(
                model=self._model,
                alias=alias,
                number=(self._session.scalar(highest) or 0) + 1,
                version=version,
                previous=previous,
                action=action,
                actor=actor,
                time=datetime.now(UTC),
                reason=reason,
                evidence=dict(evidence),
                applied=False,
            )
            self._session.add(row)
        return self._apply(_as_change(row))

    def _apply(self, change: AliasChange) -> AliasChange:
        if change.action == "delete":
            files = change.evidence.get("files")
            self._versions.remove_version(change.model, change.version, files)
        else:
            self._versions.point_alias(change.model, change.alias, change.version)
        with self._session.begin():
            key = (change.model, change.alias, change.number)
            row = self._session.get_one(AliasChangeRow, key)
            row.applied = True
        return _as_change(row)


def version_stack(changes: Sequence[AliasChange], current: int | None) -> list[int]:
    """Return the stack of an alias's versions, the current one last.

    Every change pushes its version; a rollback pops the versions above its own. A version that the
    alias was pointed to in MLflow itself counts as well.

    Args:
        changes: The changes of one alias, oldest first.
        current: The version that the alias points to now.
    """
    stack: list[int] = []

    def push(version: int | None) -> None:
        if version is not None and stack[-1:] != [version]:
            stack.append(version)

    for change in changes:
        if not change.applied:
            continue
        push(change.previous)
        if change.action == "rollback":
            while stack and stack[-1] != change.version:
                stack.pop()
        push(change.version)
    push(current)
    return stack


def _read(session: Session, model: str, alias: str | None) -> list[AliasChange]:
    found = sa.select(AliasChangeRow).where(AliasChangeRow.model == model)
    if alias is not None:
        found = found.where(AliasChangeRow.alias == alias)
    found = found.order_by(AliasChangeRow.alias, AliasChangeRow.number)  # clocks differ
    return [_as_change(row) for row in session.scalars(found)]


def _as_change(row: AliasChangeRow) -> AliasChange:
    return AliasChange(
        model=row.model,
        alias=row.alias,
        number=row.number,
        version=row.version,
        previous=row.previous,
        action=row.action,
        actor=row.actor,
        time=row.time,
        reason=row.reason,
        evidence=row.evidence,
        applied=row.applied,
    )
