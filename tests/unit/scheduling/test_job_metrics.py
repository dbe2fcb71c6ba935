"""The counts of submitted jobs that the service tells Prometheus."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings
from eagleray.database.store import OpenDatabase, open_database
from eagleray.scheduling.job_metrics import JobCounts, count_jobs
from eagleray.scheduling.records import JobRecords, new_job
from eagleray.serving.telemetry import job_families, text_of

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)


def database_with(folder: Path, **jobs: dict[str, object]) -> OpenDatabase:
    settings = Settings(home=folder / "home")
    database = open_database(settings)
    for name, fields in jobs.items():
        JobRecords(database, settings).add(
            new_job(**{"id": name, "program": "predict", "owner": "ada", **fields})
        )
    return database


def hours(count: float) -> datetime:
    return NOW - timedelta(hours=count)


def test_jobs_are_counted_by_what_they_are_in_truth(tmp_path: Path) -> None:
    runs = {"state": JobState.RUNNING.value}
    database = database_with(
        tmp_path,
        waits={"created": hours(2)},
        waits_less={"created": hours(1)},
        made_room={"created": hours(9), "started": hours(8), "yielded": True},
        runs={**runs, "lease_until": hours(-1)},
        gone={**runs, "lease_until": hours(0.01), "program": "train"},
        ended={"state": JobState.FAILED.value, "ended": hours(23)},
        ended_long_ago={"state": JobState.FAILED.value, "ended": hours(25)},
    )
    assert count_jobs(database, now=NOW) == JobCounts(
        {
            ("predict", "queued"): 3,
            ("predict", "running"): 1,
            ("train", "lost"): 1,
            ("predict", "failed"): 1,
        },
        waiting_seconds=7200.0,
    )


def test_an_empty_queue_waits_for_no_time(tmp_path: Path) -> None:
    text = text_of([({}, job_families(count_jobs(database_with(tmp_path))))]).decode()
    assert "eagleray_jobs_oldest_waiting_seconds 0.0\n" in text
    text = text_of([({}, job_families(JobCounts({("predict", "lost"): 2}, 1.5)))]).decode()
    assert 'eagleray_jobs{command="predict",state="lost"} 2.0\n' in text
    assert "eagleray_jobs_oldest_waiting_seconds 1.5\n" in text
