"""Who sends how many requests to which version: counted in each replica, summed in the database.

A request costs one addition in memory. Every few seconds, and at the end, the sums are added to the
rows of the day, in a thread. While the database does not answer they are kept, and added later; a
replica that is killed takes those of its last seconds with it.
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

__all__ = ["UsageBook", "UsageCounter", "Use", "Used"]

log = logging.getLogger(__name__)

_WEEK = 7  # days, today among them


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """What is counted together: a version's requests of one application on one day.

    Attributes:
        model: Name.
        day: In UTC.
        application: Of the caller; empty for nobody.
        version: That answered.
    """

    model: str
    day: date
    application: str
    version: int


@dataclass(slots=True)
class _Sum:
    requests: int
    last: datetime

    def add(self, other: _Sum) -> None:
        self.requests += other.requests
        self.last = max(self.last, other.last)


@dataclass(frozen=True, slots=True)
class Used:
    """How much an application used a version lately.

    Attributes:
        application: Name; empty for callers without a key.
        model: Name.
        version: Number.
        today: Requests since midnight UTC.
        week: Requests of the last seven days, today among them.
        last: When the last of them was answered.
    """

    application: str
    model: str
    version: int
    today: int
    week: int
    last: datetime

    def as_json(self) -> dict[str, Any]:
        """Return the members, for scripts and over HTTP."""
        return {
            "application": self.application or None,
            "model": self.model,
            "version": self.version,
            "today": self.today,
            "last_7_days": self.week,
            "last": f"{self.last:%FT%TZ}",
        }


class UsageBook:
    """The sums in the database.

    Args:
        database: Where they are kept.
    """

    def __init__(self, database: OpenDatabase) -> None:
        self._database = database

    def add(self, sums: Mapping[Use, tuple[int, datetime]]) -> None:
        """Add to the sums that are there, all of it or nothing.

        Args:
            sums: Requests, and the moment of the last of them.

        Raises:
            UserError: The database does not answer or refuses.
        """
        # Everybody goes through the rows in one order, so that nobody waits for one who waits.
        rows = [
            {
                "model": use.model,
                "day": use.day,
                "application": use.application,
                "version": use.version,
                "requests": requests,
                "last": last,
            }
            for use, (requests, last) in sorted(sums.items())
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
    ) -> Sequence[Used]:
        """Return what was used in the last seven days, most used first.

        Args:
            model: Only of this one.
            application: Only by this one.
            now: The present, where it is another.

        Raises:
            UserError: The database does not answer.
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
                Used(name, of, version, int(here), int(total), last)
                for name, of, version, here, total, last in session.execute(query)
            ]


class UsageCounter:
    """The requests of one replica that are not in the database yet.

    Args:
        add: Adds sums to those in the database.
        clock: The present, in UTC.
    """

    def __init__(
        self,
        add: Callable[[Mapping[Use, tuple[int, datetime]]], None],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._add, self._clock = add, clock
        self._sums: dict[Use, _Sum] = {}
        self._counting, self._writing = threading.Lock(), threading.Lock()
        self._fault: str | None = None

    @property
    def num_kept(self) -> int:
        """Requests that are not in the database yet."""
        with self._counting:
            return sum(item.requests for item in self._sums.values())

    def count(self, application: str, model: str, version: int) -> None:
        """Count a request that was answered."""
        now = self._clock()
        with self._counting:
            self._put(Use(model, now.date(), application, version), _Sum(1, now))

    def flush(self) -> bool:
        """Add everything to the database; return whether that went well.

        What the database does not take is kept. Where its answer to a commit is lost, the same
        requests may be added twice.
        """
        with self._writing:
            with self._counting:
                taken, self._sums = self._sums, {}
            if not taken:
                return True
            try:
                self._add({use: (item.requests, item.last) for use, item in taken.items()})
            except EaglerayError as error:
                self._put_back(taken)
                self._say(str(error))
                return False
            except BaseException:
                self._put_back(taken)
                raise
            self._say(None)
            return True

    def _put(self, use: Use, more: _Sum) -> None:
        held = self._sums.get(use)
        if held is None:
            self._sums[use] = more
        else:
            held.add(more)

    def _put_back(self, taken: Mapping[Use, _Sum]) -> None:
        with self._counting:
            for use, item in taken.items():
                self._put(use, item)

    def _say(self, fault: str | None) -> None:
        """Log when the database goes away, and when it is back."""
        if fault is not None and self._fault is None:
            log.warning("counts of requests are kept until the database takes them: %s", fault)
        if fault is None and self._fault is not None:
            log.warning("the database takes counts of requests again")
        self._fault = fault
