"""The process that runs a job: real processes, ended and killed; `supervise` stands for a command.

It needs no Ray, runs until it is interrupted, and prints a line when it begins.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings
from eagleray.database.store import open_database
from eagleray.database.tables import JobRow
from eagleray.scheduling.assignment import HANDED_OVER, Assignment
from eagleray.scheduling.logs import LogReader
from eagleray.scheduling.records import JobRecords
from eagleray.scheduling.supervisor import supervise
from tests.support.processes import family, heed_interrupts

LEASE = 4.0
FOREVER = {"program": "supervise", "words": ["--every", "600"]}
BRIEF = {"program": "jobs", "words": ["list", "--json"]}
SECONDS = 30.0


class Cluster:
    """Starts the processes of submissions on this machine, as a job server would.

    Args:
        home: Home folder of all processes.
    """

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home, lease_seconds=LEASE)
        self.records = JobRecords(open_database(self.settings), self.settings)
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, job: str, **record: Any) -> subprocess.Popen[str]:
        record = {"owner": "ada", **record}
        return self._start(Assignment(job=job, submission=job, record=record))

    def start_attempt(self, row: JobRow) -> None:
        self._start(Assignment(job=row.id, submission=row.submission))

    def failed_start(self, row: JobRow) -> str | None:
        return None

    def stop_attempt(self, row: JobRow) -> None:
        pass

    def _start(self, assignment: Assignment) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "eagleray.scheduling.run"],
            env={
                **os.environ,
                **assignment.environment,
                "EAGLERAY_HOME": str(self.settings.home),
                "EAGLERAY_LEASE_SECONDS": str(LEASE),
                "EAGLERAY_HEARTBEAT_SECONDS": "0.5",
                "NO_COLOR": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_interrupts,  # noqa: PLW1509 - it sets a signal and nothing else
        )
        self.processes[assignment.submission] = process
        return process

    def row(self, job: str) -> JobRow:
        return self.records.get(job)

    def log(self, job: str) -> str:
        row = self.row(job)
        return "".join(line.text for line in LogReader(row).read(row.epoch))

    def suspend(self, process: subprocess.Popen[str]) -> None:
        """Suspend a process between its transactions: others would wait for one that is open."""
        file, suspended = self.records.place, psutil.Process(process.pid)
        with contextlib.closing(sqlite3.connect(file, timeout=SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            suspended.suspend()
            until(lambda: suspended.status() == psutil.STATUS_STOPPED)

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    yield started
    started.end()


def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition does not come true"
        time.sleep(0.05)
    return value


def runs(cluster: Cluster, job: str) -> bool:
    """Whether the command of a job has begun to print."""
    return cluster.records.find(job) is not None and "Supervising" in cluster.log(job)


def test_a_command_runs_to_its_end_and_its_record_and_log_say_so(cluster: Cluster) -> None:
    out, err = cluster.start("jobs-1", **BRIEF).communicate(timeout=SECONDS)
    assert out.startswith("\x1f[")
    row = cluster.row("jobs-1")
    assert (row.state, row.exit_code, row.epoch) == (JobState.SUCCEEDED, 0, 1), err
    assert '"job": "jobs-1"' in cluster.log("jobs-1")
    assert row.core_seconds > 0
    assert row.logs == str(cluster.settings.home / "runs/_jobs/jobs-1")


def test_a_mistake_is_the_message_of_the_record(cluster: Cluster) -> None:
    process = cluster.start("jobs-2", program="jobs", words=["show", "nobody"])
    process.communicate(timeout=SECONDS)
    row = cluster.row("jobs-2")
    assert (process.returncode, row.state, row.exit_code) == (2, JobState.FAILED, 2)
    assert row.message.startswith("No job is named 'nobody'.")


def test_a_killed_process_is_a_lost_job_that_a_supervisor_submits_again(cluster: Cluster) -> None:
    process = cluster.start("long-1", retries=1, **FOREVER)
    until(lambda: runs(cluster, "long-1"))
    commands = family(process.pid)
    assert commands
    killed = time.monotonic()
    process.kill()
    psutil.wait_procs(commands, timeout=SECONDS)  # nothing of it goes on without its lease
    assert not any(command.is_running() for command in commands)
    assert cluster.row("long-1").state == JobState.RUNNING
    until(lambda: cluster.row("long-1").state == JobState.LOST)
    assert time.monotonic() - killed < LEASE + 3
    (event,) = supervise(cluster.records, lambda: cluster)
    assert "Job long-1 was lost" in event
    assert "submitted again as long-1.2, 0 of 1 retries are left" in event
    until(lambda: cluster.log("long-1").count("Supervising") == 2)
    row = cluster.row("long-1")
    assert (row.state, row.epoch, row.retries_left) == (JobState.RUNNING, 2, 0)
    assert list(supervise(cluster.records, lambda: cluster)) == []


def test_a_killed_command_is_lost_at_once(cluster: Cluster) -> None:
    process = cluster.start("long-2", **FOREVER)
    until(lambda: runs(cluster, "long-2"))
    for command in family(process.pid):
        command.kill()
    process.communicate(timeout=SECONDS)
    row = cluster.row("long-2")
    assert row.state == JobState.LOST
    assert "Its process was ended by SIGKILL" in row.message


def test_a_process_that_was_away_ends_its_command_if_another_has_the_job(cluster: Cluster) -> None:
    process = cluster.start("long-3", retries=1, **FOREVER)
    until(lambda: runs(cluster, "long-3"))
    cluster.suspend(process)
    until(lambda: cluster.row("long-3").state == JobState.LOST)
    list(supervise(cluster.records, lambda: cluster))
    until(lambda: cluster.row("long-3").epoch == 2)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=SECONDS)
    assert "another attempt has taken it" in err
    assert cluster.row("long-3").state == JobState.RUNNING


def test_a_process_that_was_away_goes_on_if_nobody_has_taken_the_job(cluster: Cluster) -> None:
    process = cluster.start("long-4", **FOREVER)
    until(lambda: runs(cluster, "long-4"))
    cluster.suspend(process)
    until(lambda: cluster.row("long-4").state == JobState.LOST)
    process.send_signal(signal.SIGCONT)
    until(lambda: cluster.row("long-4").state == JobState.RUNNING)
    assert process.poll() is None


def test_cancelling_the_record_interrupts_the_command(cluster: Cluster) -> None:
    process = cluster.start("long-5", **FOREVER)
    until(lambda: runs(cluster, "long-5"))
    cluster.records.cancel("long-5")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
    row = cluster.row("long-5")
    assert (row.state, row.exit_code) == (JobState.CANCELLED, 130)
    assert "interrupted" in cluster.log("long-5")


def test_the_job_server_stops_a_job(cluster: Cluster) -> None:
    process = cluster.start("long-6", **FOREVER)
    until(lambda: runs(cluster, "long-6"))
    process.terminate()
    process.communicate(timeout=SECONDS)
    assert cluster.row("long-6").state == JobState.CANCELLED


def test_a_second_job_waits_for_the_end_of_the_first(cluster: Cluster) -> None:
    first = cluster.start("long-7", **FOREVER)
    until(lambda: runs(cluster, "long-7"))
    second = cluster.start("jobs-8", **BRIEF)
    until(lambda: cluster.records.positions().get("jobs-8") == 1)
    cluster.records.cancel("long-7")
    first.communicate(timeout=SECONDS)
    _, err = second.communicate(timeout=SECONDS)
    assert "waits for its turn; it is number 1 in the queue" in err
    assert cluster.row("jobs-8").state == JobState.SUCCEEDED


def test_a_late_submission_of_a_job_that_has_ended_runs_nothing(cluster: Cluster) -> None:
    cluster.start("jobs-9", **BRIEF).communicate(timeout=SECONDS)
    again = cluster.start("jobs-9", **BRIEF)
    _, err = again.communicate(timeout=SECONDS)
    assert again.returncode == HANDED_OVER
    assert "has ended, or belongs to another submission" in err
    assert cluster.row("jobs-9").epoch == 1


def test_another_version_is_refused_before_anything_runs(cluster: Cluster) -> None:
    record = {"owner": "ada", **BRIEF}
    assignment = Assignment(job="jobs-10", submission="jobs-10", record=record, version="0.0.1")
    process = cluster._start(assignment)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert "and the submitter 0.0.1; install the cluster's version." in err
    assert cluster.records.find("jobs-10") is None
