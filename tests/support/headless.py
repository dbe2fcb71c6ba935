"""A database, a storage and cluster heads that come and go, and a machine that is none of them."""

from __future__ import annotations

import contextlib
import json
import os
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

from tests.support.postgres import PostgresServer
from tests.support.ray_head import Head, running_head
from tests.support.s3_server import moto_server

JOBS = "s3://pictures/jobs"
EAGLERAY = [sys.executable, "-m", "eagleray"]


@dataclass
class Place:
    """Where the tests run.

    Attributes:
        folder: Folder of the heads, and of the machine's home.
        endpoint: URL of the S3 server.
        database: URL of the database.
    """

    folder: Path
    endpoint: str
    database: str

    @contextlib.contextmanager
    def head(self) -> Iterator[Head]:
        """Start a head, with the name `gpus` on the machine."""
        folder = self.folder / f"head-{time.monotonic_ns()}"
        folder.mkdir()
        settings = {"EAGLERAY_DATABASE_URL": self.database, "EAGLERAY_JOBS_ROOT": JOBS}
        with running_head(folder, self.endpoint, settings) as head:
            words = ["cluster", "add", "gpus", head.address, "--token-file", str(head.token_file)]
            self.eagleray(*words)
            yield head

    def environment(self) -> dict[str, str]:
        """The environment of the machine."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {
            **kept,
            "EAGLERAY_HOME": str(self.folder / "home"),
            "EAGLERAY_DATABASE_URL": self.database,
            "EAGLERAY_JOBS_ROOT": JOBS,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }

    def eagleray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine, which must succeed."""
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
        """Run a supervisor; its events are on its standard output."""
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
        """Return the rows of the one result file of an output."""
        store = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=self.endpoint)
        with store.open(f"{output}/part-00000.parquet") as file:
            return pq.read_table(file)


@pytest.fixture
def place(tmp_path: Path, postgres: PostgresServer) -> Iterator[Place]:
    """A place with a bucket, `pictures`."""
    with moto_server() as endpoint:
        store = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=endpoint)
        store.makedirs("pictures", exist_ok=True)
        yield Place(tmp_path, endpoint, postgres.url(postgres.new_database()))


def write_photos(folder: Path, number: int) -> Path:
    """Write small images of noise into a new folder, and return it."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(number):
        pixels = generator.integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:05}.png")
    return folder


def until(condition: Callable[[], Any], seconds: float = 120.0, *, every: float = 0.3) -> Any:
    """Wait until a condition holds, which is looked at every so many seconds; return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition does not come true"
        time.sleep(every)
    return value
