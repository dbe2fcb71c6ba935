"""The records of jobs: claims, leases, epochs and ends, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings
from eagleray.database import store
from eagleray.database.store import OpenDatabase, open_database
from eagleray.database.tables import JobRow
from eagleray.scheduling.records import JobRecords, Report, new_job


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = None
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        url = server.url(server.new_database())
    return Settings(home=tmp_path, database_url=url)


@pytest.fixture
def records(settings: Settings) -> JobRecords:
    return JobRecords(open_database(settings), settings)


def add(records: JobRecords, name: str = "predict-1", **fields: Any) -> JobRow:
    fields = {"program": "predict", "owner": "ada", "output": "s3://results/1", **fields}
    return records.add(new_job(id=name, submission=name, **fields))


def lapse(records: JobRecords) -> None:
    """Let the leases of all jobs lapse."""
    past = datetime(2026, 1, 1, tzinfo=UTC)
    with records._database.session() as session:
        held = JobRow.lease_until.is_not(None)
        session.execute(sa.update(JobRow).where(held).values(lease_until=past))


def begin(records: JobRecords, name: str = "predict-1", **fields: Any) -> JobRow:
    """Add a job, claim it and admit it."""
    add(records, name, **fields)
    row = records.claim(name, name)
    assert row is not None
    turn = records.wait_for_turn(name, row.epoch)
    assert turn is not None
    assert turn.admitted
    return row


def test_a_job_from_submission_to_end(records: JobRecords) -> None:
    added = add(records, priority=3, retries=2)
    assert (added.state, added.epoch, added.retries_left) == (JobState.QUEUED, 0, 2)
    row = records.claim("predict-1", "predict-1")
    assert row is not None
    assert row.logs == "s3://results/1/_eagleray/logs/predict-1"
    assert records.get("predict-1").state == JobState.QUEUED
    turn = records.wait_for_turn("predict-1", row.epoch)
    assert turn is not None
    assert turn.admitted
    report = Report("Predicting", 40, 2, 100, core_seconds=8.0, gpu_seconds=2.0)
    orders = records.beat("predict-1", row.epoch, report)
    assert orders is not None
    assert (orders.cancel, orders.yields) == (False, False)
    assert records.beat("predict-1", row.epoch, report) is not None
    found = records.get("predict")
    assert (found.state, found.stage, found.num_done) == (JobState.RUNNING, "Predicting", 40)
    assert (found.num_total, found.core_seconds, found.gpu_seconds) == (100, 16.0, 4.0)
    assert records.end(row, JobState.SUCCEEDED, exit_code=0)
    ended = records.get("predict-1")
    assert (ended.state, ended.exit_code, ended.lease_until) == (JobState.SUCCEEDED, 0, None)
    assert ended.ended is not None


def test_a_lapsed_lease_is_a_lost_job_until_its_process_is_back(records: JobRecords) -> None:
    row = begin(records)
    assert records.get(row.id).state == JobState.RUNNING
    lapse(records)
    lost = records.get(row.id)
    assert lost.state == JobState.LOST
    assert "no sign of life since" in lost.message
    assert [each.state for each in records.recent()] == [JobState.LOST]
    assert records.beat(row.id, row.epoch, Report()) is not None  # it was out of reach
    assert (records.get(row.id).state, records.get(row.id).message) == (JobState.RUNNING, "")


def test_who_holds_an_older_epoch_has_lost_the_job(records: JobRecords) -> None:
    row = begin(records, retries=1)
    lapse(records)
    again = records.submit_again(records.get(row.id), takes_retry=True)
    assert again is not None
    assert (again.submission, again.retries_left) == ("predict-1.2", 0)
    assert records.claim(row.id, "predict-1") is None  # the first submission, which starts late
    second = records.claim(row.id, "predict-1.2")
    assert second is not None
    assert second.epoch == 2
    assert records.beat(row.id, 1, Report(num_done=99)) is None
    assert not records.end(row, JobState.SUCCEEDED)
    assert records.wait_for_turn(row.id, 1) is None
    assert records.get(row.id).num_done == 0


def test_of_many_supervisors_one_submits_a_lost_job(records: JobRecords) -> None:
    begin(records, retries=5)
    lapse(records)
    lost = records.get("predict-1")
    barrier = threading.Barrier(4)

    def submit(_: int) -> bool:
        barrier.wait()
        try:
            return records.submit_again(lost, takes_retry=True) is not None
        except InputError:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(submit, range(4))) == [False, False, False, True]
    assert records.get("predict-1").retries_left == 4


def test_one_of_many_processes_is_admitted(records: JobRecords) -> None:
    names = [f"predict-{number}" for number in range(6)]
    epochs = {}
    for name in names:
        add(records, name)
        row = records.claim(name, name)
        assert row is not None
        epochs[name] = row.epoch

    def wait(name: str) -> bool:
        turn = records.wait_for_turn(name, epochs[name])
        assert turn is not None
        return turn.admitted

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(wait, names)) == 1
    assert sum(each.state == JobState.RUNNING for each in records.recent()) == 1


def test_clusters_that_share_a_database_have_queues_of_their_own(settings: Settings) -> None:
    database = open_database(settings)
    for name in ("east", "west"):
        own = settings.model_copy(update={"cluster_name": name})
        begin(JobRecords(database, own), f"predict-{name}")  # admits it beside the other


def test_a_large_job_makes_room_and_goes_on(records: JobRecords) -> None:
    large = begin(records, "large")
    report = Report("Predicting", 1000, 0, 1_000_000, can_yield=True)
    with records._database.session() as session:
        session.execute(sa.update(JobRow).values(started=datetime(2026, 1, 1, tzinfo=UTC)))
    assert records.beat("large", large.epoch, report) is not None
    add(records, "small", size=50)
    small = records.claim("small", "small")
    assert small is not None
    turn = records.wait_for_turn("small", small.epoch)
    assert turn is not None
    assert (turn.admitted, turn.position) == (False, 1)
    orders = records.beat("large", large.epoch, report)
    assert orders is not None
    assert orders.yields
    assert records.make_room("large", large.epoch, report)
    waiting = records.get("large")
    assert waiting.state == JobState.QUEUED
    assert waiting.message.startswith("It has made room")
    turn = records.wait_for_turn("large", large.epoch)
    assert turn is not None
    assert not turn.admitted
    turn = records.wait_for_turn("small", small.epoch)
    assert turn is not None
    assert turn.admitted
    assert records.positions() == {"large": 1}
    assert records.end(small, JobState.SUCCEEDED)
    turn = records.wait_for_turn("large", large.epoch)
    assert turn is not None
    assert turn.admitted
    orders = records.beat("large", large.epoch, report)
    assert orders is not None
    assert not orders.yields
    assert records.get("large").state == JobState.RUNNING


def test_jobs_that_only_wait_cost_no_retry(records: JobRecords) -> None:
    begin(records, "busy")
    add(records, "waits", retries=1)
    row = records.claim("waits", "waits")
    assert row is not None
    assert records.wait_for_turn("waits", row.epoch) is not None
    assert records.without_process() == []
    lapse(records)
    due = records.without_process()
    assert [(each.id, each.state) for each in due] == [("waits", JobState.QUEUED)]
    assert records.get("busy").state == JobState.LOST  # it has no retries


def test_cancel_and_retry(records: JobRecords) -> None:
    row = begin(records)
    with pytest.raises(InputError, match="Job predict-1 is running; attach to it, or cancel it"):
        records.submit_again(records.get(row.id))
    assert records.cancel(row.id).state == JobState.RUNNING
    orders = records.beat(row.id, row.epoch, Report())
    assert orders is not None
    assert orders.cancel
    assert records.end(row, JobState.CANCELLED)
    with pytest.raises(InputError, match="has ended already: cancelled"):
        records.cancel(row.id)
    again = records.submit_again(records.get(row.id))
    assert again is not None
    assert (again.state, again.cancel_requested) == (JobState.QUEUED, False)


def test_a_cancelled_job_that_no_process_holds_ends_at_once(records: JobRecords) -> None:
    begin(records, retries=3)
    lapse(records)
    assert records.get("predict-1").state == JobState.LOST
    assert records.cancel("predict-1").state == JobState.CANCELLED
    assert records.without_process() == []


def test_what_resumes_a_job_replaces_its_words(records: JobRecords) -> None:
    row = begin(records, words=["photos", "--name", "flowers"])
    report = Report(resumed_by=("--resume", "flowers-3f9c"))
    assert records.beat(row.id, row.epoch, report) is not None
    assert records.get(row.id).words == ["--resume", "flowers-3f9c"]


def test_an_unknown_or_ambiguous_name_is_one_sentence(records: JobRecords) -> None:
    add(records, "predict-1a")
    add(records, "predict-1b")
    with pytest.raises(UnknownNameError, match=r"No job is named 'predict-2'. Nearest: predict-1"):
        records.get("predict-2")
    with pytest.raises(InputError, match="'predict-1' begins the names of several jobs"):
        records.get("predict-1")


def test_batches_of_an_older_version_become_jobs(settings: Settings) -> None:
    database = OpenDatabase(store._database(settings))
    with database._connected(10, makes_file=True) as connection, connection.begin():
        config = Config()
        config.set_main_option("script_location", str(store._MIGRATIONS))
        config.attributes |= {"connection": connection, "version_table": store.VERSION_TABLE}
        command.upgrade(config, "0006")
        batches = sa.Table("batches", sa.MetaData(), autoload_with=connection)
        connection.execute(
            batches.insert().values(
                id="3f9c",
                application="shop",
                created=datetime(2026, 1, 2, tzinfo=UTC),
                output="s3://results/1",
                request={"inputs": ["s3://photos/"]},
                model="digits/3",
                submission="eagleray-batch-3f9c",
                state="succeeded",
                message="",
            )
        )
    row = JobRecords(open_database(settings), settings).get("3f9c")
    assert (row.program, row.owner, row.application) == ("predict", "shop", "shop")
    assert (row.request, row.words, row.spec) == ({"inputs": ["s3://photos/"]}, [], None)
    assert (row.state, row.epoch, row.core_seconds) == (JobState.SUCCEEDED, 0, 0.0)
    assert row.created == datetime(2026, 1, 2, tzinfo=UTC)
