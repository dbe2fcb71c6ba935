"""Jobs whose process or whose head is killed: their records, logs and results outlive both."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from eagleray.core.job_state import JobState
from tests.support.headless import Place, place, until, write_photos
from tests.support.processes import family, kill, titled

__all__ = ["place"]

MODEL = ["--model", "random:resnet50", "--precision", "float32", "--engine", "eager"]
NUM_IMAGES = 400  # which take longer than it takes to kill the process
LEASE = 20.0  # the default
RUNNER = "eagleray.scheduling.run"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", NUM_IMAGES)


def submit(place: Place, photos: Path, output: str) -> str:
    """Submit a prediction and wait until its images are listed; return the job's name."""
    words = ["predict", str(photos), *MODEL, "--output", output, "--cluster", "gpus"]
    begun = place.eagleray(*words, "--retries", "2", "--detach").stderr
    name = begun.split("Job ")[1].split()[0]
    until(lambda: "400 images" in place.eagleray("jobs", "logs", name).stderr)
    return name


def require_whole(place: Place, name: str, output: str) -> None:
    """Check result, record and log of a job that was lost once."""
    table = place.rows(output)
    assert table.num_rows == NUM_IMAGES
    assert len(set(table.column("uri").to_pylist())) == NUM_IMAGES
    shown = place.show(name)
    assert (shown["state"], shown["attempt"], shown["retries_left"]) == ("succeeded", 2, 1)
    attached = place.eagleray("jobs", "attach", name)
    assert attached.stderr.count("400 images, model") == 2  # of both attempts
    assert f"{output}/part-00000.parquet" in attached.stdout


def test_a_job_whose_process_is_killed_is_lost_and_submitted_again(
    place: Place, photos: Path
) -> None:
    output = "s3://pictures/killed"
    with place.head() as head:
        name = submit(place, photos, output)
        (runner, *_) = titled(family(head.pid), RUNNER)[-1:]
        killed = time.monotonic()
        assert kill(runner)
        until(lambda: place.show(name)["state"] == JobState.LOST)
        assert time.monotonic() - killed < LEASE + 10
        with place.supervisor() as supervisor:
            assert supervisor.stdout is not None
            event = supervisor.stdout.readline()
            until(lambda: place.show(name)["state"] == JobState.SUCCEEDED, seconds=400)
    assert f"Job {name} was lost" in event
    assert f"submitted again as {name}.2, 1 of 2 retries are left." in event
    require_whole(place, name, output)


@pytest.mark.long
def test_a_job_outlives_its_head(place: Place, photos: Path) -> None:
    output = "s3://pictures/headless"
    with place.head() as head:
        name = submit(place, photos, output)
        killed = time.monotonic()
        os.kill(head.pid, signal.SIGSTOP)  # it starts nothing again
        for process in family(head.pid):
            kill(process)
        os.kill(head.pid, signal.SIGKILL)
        until(lambda: place.show(name)["state"] == JobState.LOST)
        assert time.monotonic() - killed < LEASE + 10
    assert "400 images" in place.eagleray("jobs", "logs", name).stderr
    with place.supervisor(), place.head():
        until(lambda: place.show(name)["state"] == JobState.SUCCEEDED, seconds=400)
    require_whole(place, name, output)
