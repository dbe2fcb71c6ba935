"""What a supervisor submits again, and what it says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from eagleray.core.errors import OutageError, UserError
from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings
from eagleray.database.store import open_database
from eagleray.database.tables import JobRow
from eagleray.scheduling.queue import MAX_PROCESSES
from eagleray.scheduling.records import JobRecords, new_job
from eagleray.scheduling.supervisor import supervise


class FakeServer:
    """A cluster that notes what is submitted; some submissions did not start."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.failed: dict[str, str] = {}
        self.fault: Exception | None = None

    def start_attempt(self, row: JobRow) -> None:
        if self.fault is not None:
            raise self.fault
        self.started.append(row.submission)

    def failed_start(self, row: JobRow) -> str | None:
        return self.failed.get(row.submission)

    def stop_attempt(self, row: JobRow) -> None:
        self.stopped.append(row.submission)


@pytest.fixture
def records(tmp_path: Path) -> JobRecords:
    settings = Settings(home=tmp_path)
    return JobRecords(open_database(settings), settings)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


def add(records: JobRecords, name: str, **fields: Any) -> None:
    records.add(new_job(id=name, submission=name, program="predict", owner="ada", **fields))


def run(records: JobRecords, name: str, **fields: Any) -> None:
    """Add a job, claim it and admit it."""
    add(records, name, **fields)
    row = records.claim(name, name)
    assert row is not None
    assert records.wait_for_turn(name, row.epoch) is not None


def lapse(records: JobRecords) -> None:
    past = datetime(2026, 1, 1, tzinfo=UTC)
    with records._database.session() as session:
        session.execute(sa.update(JobRow).values(lease_until=past))


def look(records: JobRecords, server: FakeServer) -> list[str]:
    return list(supervise(records, lambda: server))


def test_a_lost_job_is_submitted_as_often_as_its_retries_allow(
    records: JobRecords, server: FakeServer
) -> None:
    run(records, "lost", retries=1)
    assert look(records, server) == []
    lapse(records)
    (event,) = look(records, server)
    assert event.startswith("Job lost was lost (Its process has sent no sign of life since ")
    assert event.endswith("submitted again as lost.2, 0 of 1 retries are left.")
    assert (server.stopped, server.started) == (["lost"], ["lost.2"])
    assert look(records, server) == []  # the process has two minutes to start
    row = records.claim("lost", "lost.2")
    assert row is not None
    assert records.wait_for_turn("lost", row.epoch) is not None
    lapse(records)
    assert look(records, server) == []
    assert records.get("lost").state == JobState.LOST


def test_a_job_whose_process_did_not_start_has_failed_with_the_reason(
    records: JobRecords, server: FakeServer
) -> None:
    add(records, "early")
    lapse(records)
    server.failed["early"] = "Failed to set up runtime environment."
    (event,) = look(records, server)
    assert event == (
        "Job early has failed: its process did not start: Failed to set up runtime environment."
    )
    row = records.get("early")
    assert row.state == JobState.FAILED
    assert row.message == "Its process did not start: Failed to set up runtime environment."
    assert server.started == []


def test_an_unstarted_job_of_a_head_that_is_gone_is_submitted_again(
    records: JobRecords, server: FakeServer
) -> None:
    add(records, "early")
    lapse(records)
    (event,) = look(records, server)
    assert "Job early waits and has no process; it is submitted again as early.2" in event
    assert records.get("early").retries_left == 0


def test_jobs_far_behind_in_the_queue_stay_in_the_database(
    records: JobRecords, server: FakeServer
) -> None:
    for number in range(MAX_PROCESSES + 4):
        add(records, f"{number:02}")
    lapse(records)
    assert len(look(records, server)) == MAX_PROCESSES
    assert server.started == [f"{number:02}.2" for number in range(MAX_PROCESSES)]


def test_an_outage_leaves_the_job_for_later(records: JobRecords, server: FakeServer) -> None:
    run(records, "lost", retries=2)
    lapse(records)

    def connect() -> FakeServer:
        raise OutageError("No job server of Ray answers.")

    with pytest.raises(OutageError, match="No job server"):
        list(supervise(records, connect))
    assert records.get("lost").state == JobState.LOST
    assert records.get("lost").retries_left == 2
    assert len(look(records, server)) == 1


def test_a_refusal_is_said(records: JobRecords, server: FakeServer) -> None:
    run(records, "lost", retries=1)
    lapse(records)
    server.fault = UserError("The local inputs of job lost are gone with the head.")
    (event,) = look(records, server)
    assert "the cluster refuses it: The local inputs of job lost are gone" in event
    row = records.get("lost")
    assert row.state == JobState.FAILED
    assert "gone with the head" in row.message
