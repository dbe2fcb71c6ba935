"""The history of a model's aliases: who moved which, when, reason, and on what evidence.

A change is written down, then MLflow is asked, then the change is marked as applied, and nobody
else changes the model meanwhile. A process that dies on the way leaves a change that is not
applied, and the next one applies it first. So the numbers of an alias have no gaps, and the alias
points where its last change says, unless somebody moved it in MLflow itself.

`applied` stays false for good only where the version was deleted in MLflow itself.
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
"""Stands for the alias where a version itself is deleted."""


class VersionStore(Protocol):
    """What the history needs of the registry."""

    def alias_target(self, name: str, alias: str) -> int | None:
        """Return the version that an alias points to, if any."""

    def has_version(self, name: str, version: int) -> bool:
        """Whether a version is there."""

    def point_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to a version that is there."""

    def remove_version(self, name: str, version: int, files: str | None) -> None:
        """Remove a version, and its package from that folder; once more changes nothing."""


@dataclass(frozen=True, slots=True)
class AliasChange:
    """One change of an alias.

    Attributes:
        model: Name.
        alias: Name; empty where the version itself was deleted.
        number: Counts from 1 for each model and alias, without gaps.
        version: That the alias points to since.
        previous: That it pointed to before, whoever had set that; None if there was none.
        action: `promote`, `rollback`, `set`, `register` or `delete`.
        who: As the settings name them.
        time: UTC.
        reason: In their words.
        evidence: What it was decided on, for JSON.
        applied: Whether MLflow has done it.
    """

    model: str
    alias: str
    number: int
    version: int
    previous: int | None
    action: str
    who: str
    time: datetime
    reason: str
    evidence: Mapping[str, Any]
    applied: bool

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "model": self.model,
            "alias": self.alias,
            "number": self.number,
            "action": self.action,
            "from": self.previous,
            "to": self.version,
            "who": self.who,
            "when": self.time.isoformat(timespec="seconds"),
            "reason": self.reason,
            "evidence": dict(self.evidence),
            "applied": self.applied,
        }


class VersionHistory:
    """The changes of all models of a registry.

    Args:
        database: Where they are kept.
        versions: What they change.
    """

    def __init__(self, database: OpenDatabase, versions: VersionStore) -> None:
        self.database, self._versions = database, versions

    @contextlib.contextmanager
    def lock(self, model: str) -> Iterator[LockedModel]:
        """Keep everybody else from changing a model, and finish what a dead process left.

        Raises:
            UserError: The database or MLflow does not answer.
        """
        with self.database.lock(f"change model {model}") as session:
            turn = LockedModel(session, self._versions, model)
            turn.apply_pending()
            yield turn

    def changes(self, model: str, alias: str | None = None) -> list[AliasChange]:
        """Return the changes of a model, or of one alias of it, by alias and number."""
        with self.database.session() as session:
            return _read(session, model, alias)

    def alias_mismatches(self, model: str) -> dict[str, tuple[int, int | None]]:
        """Find aliases that point elsewhere than their last change says.

        Returns:
            For each alias what the history says, and where it points.
        """
        found: dict[str, tuple[int, int | None]] = {}
        for _ in range(2):  # what was just being moved has arrived when one looks again
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
    """The right to change a model, which nobody else has meanwhile."""

    def __init__(self, session: Session, versions: VersionStore, model: str) -> None:
        self._session, self._versions, self._model = session, versions, model

    def alias_target(self, alias: str) -> int | None:
        """Return the version that the alias points to, if any."""
        return self._versions.alias_target(self._model, alias)

    def rollback_targets(self, alias: str) -> list[int]:
        """Return the versions that a rollback can go to, nearest first.

        Versions that are deleted are left out, and so is the one that the alias points to.
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
        who: str,
        reason: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> AliasChange:
        """Point an alias to a version.

        Raises:
            InputError: The version is not there.
            UserError: The database or MLflow does not answer. When it is MLflow the next change
                of the model finishes this one.
        """
        if not self._versions.has_version(self._model, version):
            raise InputError(f"Model {self._model!r} has no version {version} any more.")
        return self._do(
            alias, version, self.alias_target(alias), action, who, reason, evidence or {}
        )

    def delete(self, version: int, *, who: str, reason: str, files: str | None) -> AliasChange:
        """Remove a version that no alias points to.

        Args:
            version: Number.
            who: As the settings name them.
            reason: In their words.
            files: The folder that its package is removed from, if any is.
        """
        evidence = {"files": files}
        return self._do(NO_ALIAS, version, None, "delete", who, reason, evidence)

    def apply_pending(self) -> None:
        """Apply the last change of each alias where that has not been done."""
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
        who: str,
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
                who=who,
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
    """Return the stack of versions that hold and held an alias, the current one last.

    Every change puts its version on top, a rollback takes away what is above its version. A
    version that the alias was pointed to in MLflow itself counts as well.

    Args:
        changes: Of one alias, oldest first.
        current: What it points to now.
    """
    stack: list[int] = []

    def put(version: int | None) -> None:
        if version is not None and stack[-1:] != [version]:
            stack.append(version)

    for change in changes:
        if not change.applied:
            continue
        put(change.previous)
        if change.action == "rollback":
            while stack and stack[-1] != change.version:
                stack.pop()
        put(change.version)
    put(current)
    return stack


def _read(session: Session, model: str, alias: str | None) -> list[AliasChange]:
    found = sa.select(AliasChangeRow).where(AliasChangeRow.model == model)
    if alias is not None:
        found = found.where(AliasChangeRow.alias == alias)
    found = found.order_by(AliasChangeRow.alias, AliasChangeRow.number)  # clocks may differ
    return [_as_change(row) for row in session.scalars(found)]


def _as_change(row: AliasChangeRow) -> AliasChange:
    return AliasChange(
        model=row.model,
        alias=row.alias,
        number=row.number,
        version=row.version,
        previous=row.previous,
        action=row.action,
        who=row.who,
        time=row.time,
        reason=row.reason,
        evidence=row.evidence,
        applied=row.applied,
    )
