"""What all replicas have counted, told by whichever of them is asked.

`GET /metrics` reaches one replica, now this one and now that. So each puts what it has counted into
the database every few seconds, and the one that is asked adds what the others put there to its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from eagleray.database.store import OpenDatabase
from eagleray.database.tables import ReplicaMetricsRow
from eagleray.serving.telemetry import Families

__all__ = ["MetricsBoard"]

_ALIVE = timedelta(seconds=30)


class MetricsBoard:
    """The counts of all replicas.

    Args:
        database: Where they are kept.
        replica: Name of this one.
    """

    def __init__(self, database: OpenDatabase, replica: str) -> None:
        self._database, self._replica = database, replica

    def put(self, families: Families, *, now: datetime | None = None) -> None:
        """Put up what this replica has counted, and take down what ended replicas had.

        Raises:
            UserError: The database does not answer or refuses.
        """
        now = now or datetime.now(UTC)
        with self._database.session() as session:
            session.merge(ReplicaMetricsRow(replica=self._replica, time=now, families=families))
            session.execute(
                sa.delete(ReplicaMetricsRow).where(ReplicaMetricsRow.time < now - _ALIVE)
            )

    def others(self, *, now: datetime | None = None) -> Mapping[str, Families]:
        """Return what the other replicas have counted, by their names.

        Raises:
            UserError: The database does not answer or refuses.
        """
        since = (now or datetime.now(UTC)) - _ALIVE
        query = sa.select(ReplicaMetricsRow.replica, ReplicaMetricsRow.families).where(
            ReplicaMetricsRow.time >= since, ReplicaMetricsRow.replica != self._replica
        )
        with self._database.reading() as session:
            return {row.replica: row.families for row in session.execute(query)}

    def take_down(self) -> None:
        """Forget this replica, which ends.

        Raises:
            UserError: The database does not answer or refuses.
        """
        with self._database.session() as session:
            session.execute(
                sa.delete(ReplicaMetricsRow).where(ReplicaMetricsRow.replica == self._replica)
            )
