"""Stores what applications may do with models: evaluate, train, promote.

A role is granted for a model, or for all models whose names match a pattern such as `flowers*`.
Each role includes those before it. Without one, an application may predict, pack and inspect.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.database.store import OpenDatabase
from eagleray.database.tables import ApplicationRow, GrantRow
from eagleray.serving.audit import record_change
from eagleray.serving.problems import ForbiddenError

__all__ = ["Grant", "Role", "Roles"]

_PATTERN_CHARACTERS = frozenset("*?")
_MAX_PATTERN = 128


class Role(StrEnum):
    """What an application may do with a model; each role includes those before it."""

    EVALUATE = "evaluate"
    """Record evaluations with its versions."""
    TRAIN = "train"
    """Register versions, of which the best becomes `candidate`."""
    PROMOTE = "promote"
    """Point any alias to the version that it registers."""

    def includes(self, other: Role) -> bool:
        """Whether who has this role may do what the other one allows."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Grant:
    """A role of an application.

    Attributes:
        role: The role.
        models: Name of a model, or a pattern of names.
    """

    role: Role
    models: str


class Roles:
    """The roles of applications in the database.

    Args:
        database: The organisation's database.
        actor: User who is recorded with each change.
    """

    def __init__(self, database: OpenDatabase, *, actor: str = "") -> None:
        self._database, self._actor = database, actor

    def grant(self, application: str, role: Role, models: str) -> None:
        """Give an application a role, in place of the one that it had for these models.

        Raises:
            UnknownNameError: If there is no such application.
            InputError: If the pattern is none.
        """
        plain = "".join(c for c in models if c not in _PATTERN_CHARACTERS)
        if not models or len(models) > _MAX_PATTERN or not _is_name(plain):
            raise InputError(
                f"{models!r} is neither the name of a model nor a pattern of names, such as "
                "flowers*."
            )
        with self._database.session() as session:
            if session.get(ApplicationRow, application) is None:
                known = session.scalars(sa.select(ApplicationRow.name))
                raise UnknownNameError("application", application, list(known))
            session.merge(GrantRow(application=application, models=models, role=role.value))
            record_change(
                session,
                subject=f"application {application}",
                change=f"may {role} {models}",
                actor=self._actor,
            )

    def withdraw(self, application: str, models: str) -> None:
        """Take the role of an application for these models away.

        Raises:
            UnknownNameError: If it has none.
        """
        with self._database.session() as session:
            row = session.get(GrantRow, (application, models))
            if row is None:
                query = sa.select(GrantRow.models).where(GrantRow.application == application)
                known = list(session.scalars(query))
                raise UnknownNameError(f"role of application {application!r} for", models, known)
            session.delete(row)
            record_change(
                session,
                subject=f"application {application}",
                change=f"may no longer {row.role} {models}",
                actor=self._actor,
            )

    def of(self, application: str) -> list[Grant]:
        """Return the roles of an application, by models."""
        query = sa.select(GrantRow).where(GrantRow.application == application)
        with self._database.reading() as session:
            rows = list(session.scalars(query.order_by(GrantRow.models)))
        return [Grant(Role(row.role), row.models) for row in rows if row.role in list(Role)]

    def require(self, application: str, needed: Iterable[tuple[Role, str]]) -> None:
        """Refuse an application without the roles that a request needs.

        Raises:
            ForbiddenError: If one is missing; the message says how an operator grants it.
        """
        needed = list(needed)
        grants = self.of(application) if needed else []
        for role, model in needed:
            has = any(
                grant.role.includes(role) and fnmatch.fnmatchcase(model, grant.models)
                for grant in grants
            )
            if not has:
                name = application or "APPLICATION"
                raise ForbiddenError(
                    f"This caller may not {role} {model}; an operator allows it with `eagleray "
                    f"apps grant {name} {role} {model}`."
                )


def _is_name(text: str) -> bool:
    return all(c.isascii() and (c.isalnum() or c in "_.-") for c in text)
