"""Stores the routes of models in the database: default, canary, shadow, and what served last."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime

from eagleray.core.errors import InputError
from eagleray.database.rows import BadRowError, readable_rows, report_bad_row
from eagleray.database.store import OpenDatabase
from eagleray.database.tables import ModelRouteRow, ServedRow
from eagleray.serving.audit import Change, read_changes, record_change
from eagleray.serving.versions.routing import Role, Route, Via

__all__ = ["Routes"]

_FIELDS = [field.name for field in dataclasses.fields(Route)]


class Routes:
    """The routes in the database.

    Args:
        database: The organisation's database.
        actor: User who is recorded with each change.
    """

    def __init__(self, database: OpenDatabase, *, actor: str) -> None:
        self._database, self._actor = database, actor

    def get(self, model: str) -> Route:
        """Return the route of a model; the default route if it has none of its own."""
        with self._database.session() as session:
            row = session.get(ModelRouteRow, model)
            return Route() if row is None else _as_route(row)

    def set(self, model: str, **changes: str | float | None) -> Route:
        """Change fields of a model's route.

        Args:
            model: Name of the model.
            changes: Fields of `Route` with their new values.

        Raises:
            InputError: If a share is not from 0 to 1.
        """
        for name in ("canary_share", "shadow_share"):
            share = changes.get(name)
            if share is not None and not 0 <= float(share) <= 1:
                raise InputError(
                    f"The {name.partition('_')[0]}'s share must be from 0 to 1, not {share}."
                )
        with self._database.session() as session:
            row = session.get(ModelRouteRow, model)
            before = Route() if row is None else _as_route(row)
            route = dataclasses.replace(before, **changes)  # type: ignore[arg-type]
            session.merge(ModelRouteRow(model=model, **dataclasses.asdict(route)))
            words = ", ".join(f"{name} {value}" for name, value in changes.items())
            record_change(session, subject=_subject(model), change=words, actor=self._actor)
        return route

    def read(self) -> dict[str, Route]:
        """Return the routes of all models that have one of their own.

        A damaged route is left out, so its model has the default route.

        Raises:
            OutageError: If the database does not answer.
        """
        routes = {}
        with self._database.reading() as session:
            for row in readable_rows(session, ModelRouteRow):
                try:
                    routes[row.model] = _valid_route(row)
                except BadRowError as error:
                    report_bad_row(ModelRouteRow, row.model, error)
        return routes

    def record_served(self, role: Role, version: int) -> None:
        """Record the version that serves a role, for processes that start later."""
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
        """Return the version that served each role last; damaged rows are left out.

        Raises:
            OutageError: If the database does not answer.
        """
        known = {via.value for via in Via}
        with self._database.reading() as session:
            return {
                Role(row.model, Via(row.via), row.name): row.version
                for row in readable_rows(session, ServedRow)
                if row.via in known and isinstance(row.version, int)
            }

    def changes(self, model: str) -> Sequence[Change]:
        """Return the changes to a route, oldest first."""
        with self._database.session() as session:
            return read_changes(session, _subject(model))


def _subject(model: str) -> str:
    return f"model {model}"


def _valid_route(row: ModelRouteRow) -> Route:
    """Return the route of a row.

    Raises:
        BadRowError: If the row does not hold a valid route.
    """
    for name, share in (("canary", row.canary_share), ("shadow", row.shadow_share)):
        if not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise BadRowError(f"a {name} share of {share!r}")
    if not all(isinstance(part, str) for part in (row.default, row.canary or "", row.shadow or "")):
        raise BadRowError("targets that are not text")
    return _as_route(row)


def _as_route(row: ModelRouteRow) -> Route:
    return Route(**{name: getattr(row, name) for name in _FIELDS})
