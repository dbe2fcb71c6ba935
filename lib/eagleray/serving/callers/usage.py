"""Counts the requests of each application to each version, by day.

A request costs one addition in memory. Every few seconds, and at the end, each replica adds its
counts to the rows of the day in the database, in a thread. While the database does not answer, it
keeps them; the counts of the last seconds are lost if a replica is killed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from eagleray.core.errors import EaglerayError
from eagleray.database.store import OpenDatabase
from eagleray.database.tables import UsageRow

__all__ = ["UsageCounter", "UsageKey", "UsageStore", "VersionUsage"]

log = logging.getLogger(__name__)

_WEEK = 7  # days, today among them


@dataclass(frozen=True, slots=True, order=True)
class UsageKey:
    """The key of a count: the requests of one application to one version on one day.

    Attributes:
        model: Name of the model.
        day: Day in UTC.
        application: Name of the application; empty for callers without a key.
        version: Version number.
    """

    model: str
    day: date
    application: str
    version: int


@dataclass(slots=True)
class _Count:
    requests: int
    last: datetime

    def add(self, other: _Count) -> None:
        self.requests += other.requests
        self.last = max(self.last, other.last)


@dataclass(frozen=True, slots=True)
class VersionUsage:
    """The recent requests of one application to one version.

    Attributes:
        application: Name of the application; empty for callers without a key.
        model: Name of the model.
        version: Version number.
        today: Number of requests since midnight UTC.
        week: Number of requests in the last seven days, including today.
        last: Time of the last request.
    """

    application: str
    model: str
    version: int
    today: int
    week: int
    last: datetime

    def as_json(self) -> dict[str, Any]:
        """Return the members of the JSON object."""
        return {
            "application": self.application or None,
            "model": self.model,
            "version": self.version,
            "today": self.today,
            "last_7_days": self.week,
            "last": f"{self.last:%FT%TZ}",
        }


class UsageStore:
    """The counts in the database.

    Args:
        database: The organisation's database.
    """

    def __init__(self, database: OpenDatabase) -> None:
        self._database = database

    def add(self, counts: Mapping[UsageKey, tuple[int, datetime]]) -> None:
        """Add to the counts in the database, in one transaction.

        Args:
            counts: Number of requests, and the time of the last of them, by key.

        Raises:
            UserError: If the database does not answer or refuses.
        """
        # All replicas write the rows in the same order, so that no two of them deadlock.
        rows = [
            {
                "model": key.model,
                "day": key.day,
                "application": key.application,
                "version": key.version,
                "requests": requests,
                "last": last,
            }
            for key, (requests, last) in sorted(counts.items())
        ]
        with self._database.session() as session:
            insert: Any = postgresql.insert if self._is_postgresql else sqlite.insert
            statement = insert(UsageRow)
            new, old = statement.excluded, UsageRow
            statement = statement.on_conflict_do_update(
                index_elements=["model", "day", "application", "version"],
                set_={
                    "requests": old.requests + new.requests,
                    "last": sa.case((new.last > old.last, new.last), else_=old.last),
                },
            )
            session.execute(statement, rows)

    @property
    def _is_postgresql(self) -> bool:
        return self._database.database.is_postgresql

    def recent(
        self,
        *,
        model: str | None = None,
        application: str | None = None,
        now: datetime | None = None,
    ) -> Sequence[VersionUsage]:
        """Return the usage of the last seven days, most requests first.

        Args:
            model: Name of the only model to include; None for all.
            application: Name of the only application to include; None for all.
            now: The current time; None for the system's.

        Raises:
            UserError: If the database does not answer.
        """
        today = (now or datetime.now(UTC)).astimezone(UTC).date()
        requests_today = sa.case((UsageRow.day == today, UsageRow.requests), else_=0)
        key = (UsageRow.application, UsageRow.model, UsageRow.version)
        week = sa.func.sum(UsageRow.requests)
        query = (
            sa.select(*key, sa.func.sum(requests_today), week, sa.func.max(UsageRow.last))
            .where(UsageRow.day > today - timedelta(days=_WEEK))
            .group_by(*key)
            .order_by(week.desc(), *key)
        )
        if model is not None:
            query = query.where(UsageRow.model == model)
        if application is not None:
            query = query.where(UsageRow.application == application)
        with self._database.reading() as session:
            return [
                VersionUsage(name, of, version, int(here), int(total), last)
                for name, of, version, here, total, last in session.execute(query)
            ]


class UsageCounter:
    """The counts of one replica that are not in the database yet.

    Args:
        add: Adds counts to those in the database.
        clock: Returns the current time in UTC.
    """

    def __init__(
        self,
        add: Callable[[Mapping[UsageKey, tuple[int, datetime]]], None],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._add, self._clock = add, clock
        self._counts: dict[UsageKey, _Count] = {}
        self._count_lock, self._flush_lock = threading.Lock(), threading.Lock()
        self._fault: str | None = None

    @property
    def num_kept(self) -> int:
        """Number of requests that are not in the database yet."""
        with self._count_lock:
            return sum(item.requests for item in self._counts.values())

    def count(self, application: str, model: str, version: int) -> None:
        """Count a request."""
        now = self._clock()
        with self._count_lock:
            self._put(UsageKey(model, now.date(), application, version), _Count(1, now))

    def flush(self) -> bool:
        """Add all counts to the database; return whether that succeeded.

        Otherwise they are kept. If the reply to a commit is lost, the same requests may be counted
        twice.
        """
        with self._flush_lock:
            with self._count_lock:
                taken, self._counts = self._counts, {}
            if not taken:
                return True
            try:
                self._add({key: (item.requests, item.last) for key, item in taken.items()})
            except EaglerayError as error:
                self._put_back(taken)
                self._log_change(str(error))
                return False
            except BaseException:
                self._put_back(taken)
                raise
            self._log_change(None)
            return True

    def _put(self, key: UsageKey, more: _Count) -> None:
        held = self._counts.get(key)
        if held is None:
            self._counts[key] = more
        else:
            held.add(more)

    def _put_back(self, taken: Mapping[UsageKey, _Count]) -> None:
        with self._count_lock:
            for key, item in taken.items():
                self._put(key, item)

    def _log_change(self, fault: str | None) -> None:
        """Log when the database stops accepting counts, and when it accepts them again."""
        if fault is not None and self._fault is None:
            log.warning("the usage is kept until the database accepts it: %s", fault)
        if fault is None and self._fault is not None:
            log.warning("the database accepts the usage again")
        self._fault = fault
