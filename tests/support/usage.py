"""Checks of usage counts that every kind of database must pass."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from eagleray.core.errors import UserError
from eagleray.database.store import OpenDatabase
from eagleray.serving.callers.usage import UsageCounter, UsageStore

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


class Replica:
    """A counter whose clock and database do as they are told."""

    def __init__(self, book: UsageStore) -> None:
        self.now, self.away, self._book = NOON, False, book
        self.counter = UsageCounter(self._add, clock=lambda: self.now)

    def _add(self, sums: object) -> None:
        if self.away:
            raise UserError("the database is away")
        self._book.add(sums)  # type: ignore[arg-type]

    def count(self, application: str, version: int, times: int = 1, *, days_ago: int = 0) -> None:
        self.now = NOON - timedelta(days=days_ago)
        for _ in range(times):
            self.counter.count(application, "digits", version)
        self.now = NOON


def check_sums(database: OpenDatabase) -> None:
    """What every kind of database must do."""
    book = UsageStore(database)
    one, other = Replica(book), Replica(book)
    one.count("shop", 7, 3)
    one.count("shop", 7, 2, days_ago=6)
    one.count("shop", 7, 100, days_ago=7)  # too long ago
    one.count("", 8, 1, days_ago=1)
    other.count("shop", 7, 4)
    assert all((one.counter.flush(), other.counter.flush(), other.counter.flush()))
    other.count("shop", 7, 1, days_ago=0)
    other.counter.flush()
    used = book.recent(model="digits", now=NOON)
    told = [(item.application, item.version, item.today, item.week) for item in used]
    assert told == [("shop", 7, 8, 10), ("", 8, 0, 1)]
    assert [item.last for item in used] == [NOON, NOON - timedelta(days=1)]
    assert book.recent(model="other", now=NOON) == []
    assert [item.version for item in book.recent(application="", now=NOON)] == [8]


def check_concurrent_additions(database: OpenDatabase) -> None:
    """Many replicas add to the same rows at once, in any order."""
    book, together = UsageStore(database), threading.Barrier(6)

    def replica(number: int) -> None:
        counter = UsageCounter(book.add, clock=lambda: NOON)
        together.wait(30)
        for round_ in range(5):
            for version in (1, 2, 3) if (number + round_) % 2 else (3, 2, 1):
                counter.count("shop", "digits", version)
            assert counter.flush()

    threads = [threading.Thread(target=replica, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [item.today for item in book.recent(now=NOON)] == [30, 30, 30]
