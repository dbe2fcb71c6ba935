"""Jobs whose process or whose head is killed: their records, logs and results outlive both."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image

from eagleray.core.job_state import JobState
from tests.support.postgres import PostgresServer
from tests.support.processes import family, kill, titled
from tests.support.ray_head import Head, running_head
from tests.support.s3_server import moto_server

EAGLERAY = [sys.executable, "-m", "eagleray"]
MODEL = ["--model", "random:lenet5", "--precision", "float32", "--engine", "eager"]
NUM_IMAGES = 400
LEASE = 20.0  # the default
RUNNER = "eagleray.scheduling.run"


@dataclass
class Place:
    """A database, a storage and heads that come and go; and a machine that is none of them."""

    folder: Path
    endpoint: str
    database: str

    @contextlib.contextmanager
    def head(self) -> Iterator[Head]:
        """Start a head, with the name `gpus` on the machine."""
        folder = self.folder / f"head-{time.monotonic_ns()}"
        folder.mkdir()
        settings = {"EAGLERAY_DATABASE_URL": self.database}
        with running_head(folder, self.endpoint, settings) as head:
            words = ["cluster", "add", "gpus", head.address, "--token-file", str(head.token_file)]
            self.eagleray(*words)
            yield head

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {
            **kept,
            "EAGLERAY_HOME": str(self.folder / "home"),
            "EAGLERAY_DATABASE_URL": self.database,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }

    def eagleray(self, *words: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [*EAGLERAY, *words],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result

    @contextlib.contextmanager
    def supervisor(self) -> Iterator[subprocess.Popen[str]]:
        command = [*EAGLERAY, "supervise", "--cluster", "gpus", "--every", "1"]
        with subprocess.Popen(
            command, env=self.environment(), stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.terminate()

    def show(self, job: str) -> dict[str, Any]:
        """Return what is known of a job, without asking any head."""
        found: dict[str, Any] = json.loads(self.eagleray("jobs", "show", job, "--json").stdout)
        return found

    def rows(self, output: str) -> Any:
        store = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=self.endpoint)
        with store.open(f"{output}/part-00000.parquet") as file:
            return pq.read_table(file)


@pytest.fixture
def place(tmp_path: Path, postgres: PostgresServer) -> Iterator[Place]:
    with moto_server() as endpoint:
        store = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=endpoint)
        store.makedirs("pictures", exist_ok=True)
        yield Place(tmp_path, endpoint, postgres.url(postgres.new_database()))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        pixels = generator.integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition does not come true"
        time.sleep(0.3)
    return value


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
    assert attached.stderr.count("400 images") == 2  # of both attempts
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
            until(lambda: place.show(name)["state"] == JobState.SUCCEEDED)
    assert f"Job {name} was lost" in event
    assert f"submitted again as {name}.2, 1 of 2 retries are left." in event
    require_whole(place, name, output)


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
        until(lambda: place.show(name)["state"] == JobState.SUCCEEDED)
    require_whole(place, name, output)
