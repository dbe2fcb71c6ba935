"""Records and reads the changes to applications and routes: the actor, the time and the change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from eagleray.database.tables import ServingChangeRow

__all__ = ["Change", "read_changes", "record_change"]


@dataclass(frozen=True, slots=True)
class Change:
    """A change to an application or a route.

    Attributes:
        time: Time of the change, in UTC.
        actor: User who made the change.
        description: Description of the change.
    """

    time: datetime
    actor: str
    description: str

    def as_json(self) -> dict[str, str]:
        """Return the members of the JSON object."""
        return {
            "time": f"{self.time:%FT%TZ}",
            "actor": self.actor,
            "change": self.description,
        }

    def as_row(self) -> list[str]:
        """Return the cells of a table row."""
        return [f"{self.time:%Y-%m-%d %H:%M}", self.actor, self.description]


def record_change(session: Session, *, subject: str, change: str, actor: str) -> None:
    """Record a change to an application or a route."""
    session.add(
        ServingChangeRow(subject=subject, change=change, actor=actor, time=datetime.now(UTC))
    )


def read_changes(session: Session, subject: str) -> Sequence[Change]:
    """Return the changes to one subject, oldest first."""
    query = sa.select(ServingChangeRow).where(ServingChangeRow.subject == subject)
    rows = session.scalars(query.order_by(ServingChangeRow.number))
    return [Change(row.time, row.actor, row.change) for row in rows]
