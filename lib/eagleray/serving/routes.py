"""The routes of models, kept in the database: default, canary, shadow, and what served last."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from eagleray.database.store import OpenDatabase
from eagleray.database.tables import ModelRouteRow, ServedRow
from eagleray.errors import InputError
from eagleray.serving.changes import Change, note_change, read_changes
from eagleray.serving.routing import Role, Route, Via

__all__ = ["Routes"]

_FIELDS = [field.name for field in dataclasses.fields(Route)]


class Routes:
    """Which versions of which model answer.

    Args:
        database: Where the routes are kept.
        who: Is written down with each change.
    """

    def __init__(self, database: OpenDatabase, *, who: str) -> None:
        self._database, self._who = database, who

    def get(self, model: str) -> Route:
        """Return the route of a model; the usual one where nobody set another."""
        with self._database.session() as session:
            row = session.get(ModelRouteRow, model)
            return Route() if row is None else _as_route(row)

    def set(self, model: str, **changes: str | float | None) -> Route:
        """Change fields of a model's route.

        Args:
            model: Name.
            changes: Fields of `Route` with their new values.

        Raises:
            InputError: A share is not from 0 to 1.
        """
        for name in ("canary_share", "shadow_share"):
            share = changes.get(name)
            if share is not None and not 0 <= float(share) <= 1:
                raise InputError(f"The share of {name.partition('_')[0]} is from 0 to 1: {share}.")
        with self._database.session() as session:
            row = session.get(ModelRouteRow, model)
            before = Route() if row is None else _as_route(row)
            route = dataclasses.replace(before, **changes)  # type: ignore[arg-type]
            session.merge(ModelRouteRow(model=model, **dataclasses.asdict(route)))
            words = ", ".join(f"{name} {value}" for name, value in changes.items())
            note_change(session, subject=_subject(model), what=words, who=self._who)
        return route

    def read(self) -> dict[str, Route]:
        """Return the routes of all models that have one of their own."""
        with self._database.session() as session:
            return {row.model: _as_route(row) for row in session.scalars(sa.select(ModelRouteRow))}

    def note_served(self, role: Role, version: int) -> None:
        """Remember the version that answers in a role, for processes that begin later."""
        row = ServedRow(
            model=role.model,
            via=role.via.value,
            name=role.name,
            version=version,
            time=datetime.now(UTC),
        )
        with self._database.session() as session:
            session.merge(row)

    def served(self) -> dict[Role, int]:
        """Return the version that answered last in each role."""
        with self._database.session() as session:
            return {
                Role(row.model, Via(row.via), row.name): row.version
                for row in session.scalars(sa.select(ServedRow))
            }

    def changes(self, model: str) -> Sequence[Change]:
        """Return the changes of a route, oldest first."""
        with self._database.session() as session:
            return read_changes(session, _subject(model))


def _subject(model: str) -> str:
    return f"model {model}"


def _as_route(row: ModelRouteRow) -> Route:
    return Route(**{name: getattr(row, name) for name in _FIELDS})
