"""Shares the metrics of all replicas through the database, so that any replica returns them.

`GET /metrics` reaches one replica through the gateway, a different one each time. So each replica
writes its metrics to the database every few seconds, and the one that is scraped adds the others'.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from eagleray.database.store import OpenDatabase
from eagleray.database.tables import ReplicaMetricsRow
from eagleray.serving.telemetry import Families

__all__ = ["ReplicaMetrics"]

_EXPIRY = timedelta(seconds=30)


class ReplicaMetrics:
    """The metrics of all replicas in the database.

    Args:
        database: The organisation's database.
        replica: Name of this replica.
    """

    def __init__(self, database: OpenDatabase, replica: str) -> None:
        self._database, self._replica = database, replica

    def publish(self, families: Families, *, now: datetime | None = None) -> None:
        """Write the metrics of this replica, and delete those of replicas that ended.

        Raises:
            UserError: If the database does not answer or refuses.
        """
        now = now or datetime.now(UTC)
        with self._database.session() as session:
            session.merge(ReplicaMetricsRow(replica=self._replica, time=now, families=families))
            session.execute(
                sa.delete(ReplicaMetricsRow).where(ReplicaMetricsRow.time < now - _EXPIRY)
            )

    def others(self, *, now: datetime | None = None) -> Mapping[str, Families]:
        """Return the metrics of the other replicas, by name.

        Raises:
            UserError: If the database does not answer or refuses.
        """
        since = (now or datetime.now(UTC)) - _EXPIRY
        query = sa.select(ReplicaMetricsRow.replica, ReplicaMetricsRow.families).where(
            ReplicaMetricsRow.time >= since, ReplicaMetricsRow.replica != self._replica
        )
        with self._database.reading() as session:
            return {row.replica: row.families for row in session.execute(query)}

    def remove(self) -> None:
        """Delete the metrics of this replica, which ends.

        Raises:
            UserError: If the database does not answer or refuses.
        """
        with self._database.session() as session:
            session.execute(
                sa.delete(ReplicaMetricsRow).where(ReplicaMetricsRow.replica == self._replica)
            )
