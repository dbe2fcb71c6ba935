"""A client with nothing but a key: every job by the service gives what the embedded one gives."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from eagleray.core.errors import ExitCode
from eagleray.serving.callers.applications import Applications
from eagleray.serving.callers.roles import Role, Roles
from tests.support.processes import heed_interrupts
from tests.support.service import running_service
from tests.support.serving import registry_with
from tests.support.training import write_stripes

pytestmark = pytest.mark.long

EAGLERAY = [sys.executable, "-P", "-m", "eagleray"]
EXACT = ["--engine", "eager", "--precision", "float32"]
TRAINING = ["--architecture", "lenet5", "--epochs", "3", "--batch-size", "16", "--seed", "7"]


@dataclass
class Place:
    """A service, its storage, and the folder of its home."""

    url: str
    bucket: str
    home: Path
    key: str

    def client(self, folder: Path) -> Client:
        """Return a client in an empty folder, with only a key."""
        folder.mkdir()
        key_file = folder / "key"
        key_file.touch(mode=0o600)
        key_file.write_text(self.key)
        client = Client(folder)
        named = client.run("cluster", "add", "lab", self.url, "--key-file", str(key_file))
        assert named.returncode == 0, named.stderr
        return client

    def embedded(self, *words: str) -> dict[str, Any]:
        """Run a command beside the service, on a Ray of its own; return its JSON."""
        environment = {**os.environ, "EAGLERAY_HOME": str(self.home)}
        done = subprocess.run(
            [*EAGLERAY, *words, "--json"], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def rows(self, output: str) -> pa.Table:
        """Return the rows of the one result file."""
        content = s3fs.S3FileSystem().cat_file(f"{output}/part-00000.parquet")
        return pq.read_table(io.BytesIO(content))


@dataclass
class Client:
    """Somebody in a folder of their own, who reaches neither the storage nor the cluster."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "RAY_", "EAGLERAY_"))
        }
        home = str(self.folder / "home")
        return {**kept, "EAGLERAY_HOME": home, "NO_COLOR": "1", "COLUMNS": "200"}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*EAGLERAY, *words], env=self.environment, cwd=self.folder, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    def json(self, *words: str) -> dict[str, Any]:
        """Run a command by the service, and return its JSON."""
        done = self.run(*words, "--cluster", "lab", "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def place(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("door")
    registry = registry_with(folder, "digits")
    database = registry.history.database
    key = Applications(database, actor="tester").create("lab").key
    Roles(database).grant("lab", Role.TRAIN, "stripe*")
    files = s3fs.S3FileSystem()
    for name, seed in (("train", 0), ("test", 1)):
        local = write_stripes(folder / name, seed=seed)
        files.put(str(local), f"{s3}/door/{name}", recursive=True)
    files.pipe(f"{s3}/door/outside.csv", f"image,label\n{s3}/secret/a.png,a\n".encode())
    words = ["digits", "--engine", "eager", "--batch-inputs", f"{s3}/door"]
    words += ["--batch-outputs", f"{s3}/results/{{application}}"]
    with running_service(folder / "home", *words) as service:
        yield Place(service.url, s3, folder / "home", key)


@pytest.fixture(scope="module")
def client(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return place.client(tmp_path_factory.mktemp("client") / "empty")


def results(place: Place) -> str:
    return f"{place.bucket}/results/lab"


def test_training_evaluation_and_prediction_are_those_of_the_embedded_run(
    place: Place, client: Client
) -> None:
    data = f"{place.bucket}/door/train"
    train = ["train", data, "--name", "stripes", *TRAINING]
    there, here = client.json(*train), place.embedded(*train)
    assert (there["model"], here["model"]) == ("stripes/1", "stripes/2")
    for name in ("test", "validation", "best_epoch", "monitor", "test_images", "positive"):
        assert there[name] == here[name], name

    test = ["evaluate", "stripes/1", f"{place.bucket}/door/test"]
    page = f"{results(place)}/page.html"
    measured, wanted = client.json(*test, "--output", page), place.embedded(*test)
    assert measured["metrics"] == wanted["metrics"]
    assert (measured["page"], measured["recorded_as"]) == (page, "stripes/1")
    assert s3fs.S3FileSystem().exists(page)

    predict = ["predict", f"{place.bucket}/door/test", "--model", "stripes/1", *EXACT, "--output"]
    told = client.json(*predict, f"{results(place)}/there")
    place.embedded(*predict, f"{results(place)}/here")
    assert (told["ok"], told["failed"]) == (48, 0)
    found, expected = (place.rows(f"{results(place)}/{name}") for name in ("there", "here"))
    assert found.drop_columns(["milliseconds"]).equals(expected.drop_columns(["milliseconds"]))


def test_a_killed_client_is_replaced_by_one_elsewhere(
    place: Place, client: Client, tmp_path: Path
) -> None:
    output = f"{results(place)}/killed"
    words = ["pack", f"{place.bucket}/door/test", "--output", output, "--cluster", "lab"]
    with subprocess.Popen(
        [*EAGLERAY, *words], env=client.environment, cwd=client.folder, stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - it sets a signal and nothing else
    ) as process:  # fmt: skip
        assert process.stderr is not None
        name = next(line for line in process.stderr if line.startswith("Job ")).split()[1]
        process.kill()
    other = place.client(tmp_path / "elsewhere")
    attached = other.run("jobs", "attach", name, "--cluster", "lab")
    assert attached.returncode == 0, attached.stderr
    assert "48 images" in attached.stderr
    assert output in attached.stdout
    shown = json.loads(other.run("jobs", "show", name, "--cluster", "lab", "--json").stdout)
    assert (shown["state"], shown["user"], shown["exit_code"]) == ("succeeded", "lab", 0)
    logs = other.run("jobs", "logs", name, "--cluster", "lab")
    assert logs.stdout == attached.stdout
    listed = json.loads(other.run("jobs", "list", "--cluster", "lab", "--json").stdout)
    assert name in {job["job"] for job in listed}


def test_a_table_cannot_lead_a_job_outside(place: Place, client: Client) -> None:
    table = f"{place.bucket}/door/outside.csv"
    words = ["train", table, "--name", "stripes", *TRAINING, "--cluster", "lab"]
    done = client.run(*words)
    assert done.returncode == ExitCode.USER
    assert "outside the locations that this job may read" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("train", "{}/door/train", "--name", "flowers"), "eagleray apps grant lab train flowers"),
        (("predict", "{}/secret/", "--model", "digits", "--output", "{}/results/lab/x"), "--batch"),
        (("predict", "{}/door/test", "--model", "digits", "--output", "results"), "disk of a mach"),
        (("pack", "photos", "--output", "{}/results/lab/x"), "is on this disk, or nowhere"),
    ],
)
def test_what_is_not_allowed_is_one_sentence(
    place: Place, client: Client, words: tuple[str, ...], fault: str
) -> None:
    filled = [word.replace("{}", place.bucket) for word in words]
    done = client.run(*filled, "--cluster", "lab")
    assert done.returncode == ExitCode.USER
    assert fault in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
