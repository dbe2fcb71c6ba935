"""Who changed what the service goes by, when: of applications and of models' routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from eagleray.database.tables import ServingChangeRow

__all__ = ["Change", "note_change", "read_changes"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change.

    Attributes:
        time: UTC.
        who: Changed it.
        what: In words.
    """

    time: datetime
    who: str
    what: str

    def as_json(self) -> dict[str, str]:
        """Return the members, for scripts."""
        return {"when": f"{self.time:%FT%TZ}", "who": self.who, "what": self.what}

    def as_row(self) -> list[str]:
        """Return the cells, for people."""
        return [f"{self.time:%Y-%m-%d %H:%M}", self.who, self.what]


def note_change(session: Session, *, subject: str, what: str, who: str) -> None:
    """Write down a change of an application or a route."""
    session.add(ServingChangeRow(subject=subject, what=what, who=who, time=datetime.now(UTC)))


def read_changes(session: Session, subject: str) -> Sequence[Change]:
    """Return the changes of one subject, oldest first."""
    query = sa.select(ServingChangeRow).where(ServingChangeRow.subject == subject)
    rows = session.scalars(query.order_by(ServingChangeRow.number))
    return [Change(row.time, row.who, row.what) for row in rows]
