"""How the process that runs a job passes requests on: make room, go on, end."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa

from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings
from eagleray.database.store import open_database
from eagleray.database.tables import JobRow
from eagleray.scheduling.command import JobCommand
from eagleray.scheduling.records import JobRecords, new_job
from eagleray.scheduling.run import _Watch


class FakeCommand:
    """A command that runs, and notes what it is asked."""

    def __init__(self) -> None:
        self.requests: list[str] = []

    def request(self, name: str) -> None:
        self.requests.append(name)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def records(settings: Settings) -> JobRecords:
    return JobRecords(open_database(settings), settings)


def claim(records: JobRecords, name: str, **fields: Any) -> JobRow:
    records.add(new_job(id=name, submission=name, program="predict", owner="ada", **fields))
    row = records.claim(name, name)
    assert row is not None
    return row


def is_admitted(records: JobRecords, row: JobRow) -> bool:
    turn = records.wait_for_turn(row.id, row.epoch)
    assert turn is not None
    return turn.admitted


def watched(settings: Settings, records: JobRecords) -> tuple[_Watch, FakeCommand]:
    """A large job that has run for long, and makes room on request."""
    row, command = claim(records, "large"), FakeCommand()
    assert is_admitted(records, row)
    watch = _Watch(records, settings, row, cast("JobCommand", command))
    watch._take({"stage": "Predicting", "done": 100, "failed": 1, "total": 1_000_000})
    assert watch._take({"can_yield": True})
    assert watch._beat()
    with records._database.session() as session:
        session.execute(sa.update(JobRow).values(started=datetime(2026, 1, 1, tzinfo=UTC)))
    return watch, command


def test_a_large_job_makes_room_for_a_small_one_and_goes_on(
    settings: Settings, records: JobRecords
) -> None:
    watch, command = watched(settings, records)
    small = claim(records, "small", size=20)
    assert not is_admitted(records, small)
    assert watch._beat()
    assert watch._beat()
    assert command.requests == ["yield"]
    assert watch._take({"yielded": True})
    assert watch._beat()
    assert records.get("large").state == JobState.QUEUED
    assert is_admitted(records, small)
    assert watch._beat()
    assert command.requests == ["yield"]
    assert records.end(small, JobState.SUCCEEDED)
    assert watch._beat()
    assert command.requests == ["yield", "resume"]
    row = records.get("large")
    assert (row.state, row.num_done, row.yields_to) == (JobState.RUNNING, 100, "")


def test_a_request_is_withdrawn_when_the_small_job_is_cancelled(
    settings: Settings, records: JobRecords
) -> None:
    watch, command = watched(settings, records)
    small, other = claim(records, "small", size=20), claim(records, "other")
    assert not is_admitted(records, small)
    assert watch._beat()
    records.cancel("small")
    assert records.wait_for_turn("small", small.epoch) is None
    assert not is_admitted(records, other)
    assert watch._beat()
    assert command.requests == ["yield", "resume"]


def test_a_job_that_is_cancelled_while_it_makes_room_ends(
    settings: Settings, records: JobRecords
) -> None:
    watch, _ = watched(settings, records)
    assert not is_admitted(records, claim(records, "small", size=20))
    assert watch._take({"yielded": True})
    assert watch._beat()
    records.cancel("large")
    assert not watch._beat()
    assert records.get("large").state == JobState.CANCELLED


def test_a_request_is_seen_before_the_next_sign_of_life(
    settings: Settings, records: JobRecords
) -> None:
    watch, _ = watched(settings, records)
    assert not watch._is_asked()
    small = claim(records, "small", size=20)
    turn = records.wait_for_turn(small.id, small.epoch)
    assert turn is not None
    assert (turn.admitted, turn.expected) == (False, True)
    watch._next_look = 0.0
    assert watch._is_asked()
    assert watch._beat()
    assert not watch._is_asked()  # it is known, and not looked up
