"""Commands on a cluster from outside it: the same results, and jobs that outlive their terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image

from eagleray.core.errors import ExitCode
from tests.support.processes import heed_interrupts
from tests.support.ray_head import Head

EAGLERAY = [sys.executable, "-m", "eagleray"]
MODEL = ["--model", "random:lenet5", "--precision", "float32", "--engine", "eager"]


@pytest.fixture
def home(tmp_path: Path, head: Head) -> Path:
    """A submitter's home, in which the cluster has a name."""
    home = tmp_path / "home"
    words = ["cluster", "add", "here", head.address, "--token-file", str(head.token_file)]
    assert eagleray(home, *words).returncode == 0
    return home


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def s3(head: Head, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of the server that the cluster reaches; so does what a test starts."""
    for name, value in head.storage.items():
        monkeypatch.setenv(name, value)
    bucket_store(head).makedirs("pictures", exist_ok=True)
    return "s3://pictures"


def bucket_store(head: Head) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key="test", secret="test", endpoint_url=head.storage["AWS_ENDPOINT_URL"]
    )


def eagleray(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EAGLERAY, *words], env=environment(home), capture_output=True, text=True, check=False
    )


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "EAGLERAY_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200"}


def rows(head: Head, output: str) -> pa.Table:
    """Return the rows of the one result file."""
    with bucket_store(head).open(f"{output}/part-00000.parquet") as file:
        return pq.read_table(file)


def test_a_job_from_outside_gives_what_an_embedded_one_gives(
    home: Path, photos: Path, s3: str, head: Head
) -> None:
    there = eagleray(
        home,
        "predict",
        str(photos),
        *MODEL,
        "--output",
        f"{s3}/there",
        "--cluster",
        "here",
        "--json",
    )
    assert there.returncode == 0, there.stderr
    here = eagleray(home, "predict", str(photos), *MODEL, "--output", f"{s3}/here", "--json")
    assert here.returncode == 0, here.stderr
    told = json.loads(there.stdout)
    assert (told["ok"], told["failed"], told["reasons"]) == (12, 1, {"not_an_image": 1})
    assert told["labels"] == json.loads(here.stdout)["labels"]
    found, wanted = rows(head, f"{s3}/there"), rows(head, f"{s3}/here")
    differ = ["uri", "milliseconds"]
    assert found.drop_columns(differ).equals(wanted.drop_columns(differ))
    assert "Running entrypoint" not in there.stdout + there.stderr


def test_an_interrupt_leaves_the_job_and_another_machine_attaches(
    home: Path, photos: Path, s3: str, tmp_path: Path, head: Head
) -> None:
    words = ["predict", str(photos), *MODEL, "--output", f"{s3}/left", "--cluster", "here"]
    with subprocess.Popen(
        [*EAGLERAY, *words],
        env=environment(home),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - it sets a signal and nothing else
    ) as process:
        assert process.stderr is not None
        name = next(line for line in process.stderr if line.startswith("Job ")).split()[1]
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == ExitCode.INTERRUPTED
    assert f"Job {name} goes on without this terminal" in " ".join(said.split())
    other = tmp_path / "other-home"
    words = ["cluster", "add", "there", head.address, "--token-file", str(head.token_file)]
    assert eagleray(other, *words).returncode == 0
    attached = eagleray(other, "jobs", "attach", name, "--cluster", "there")
    assert attached.returncode == 0, attached.stderr
    assert "13 images" in attached.stderr
    assert "Predicting 13/13  1 failed" in attached.stderr
    assert f"{s3}/left/part-00000.parquet" in attached.stdout
    listed = json.loads(eagleray(other, "jobs", "list", "--cluster", "there", "--json").stdout)
    assert {job["job"]: job["state"] for job in listed}[name] == "succeeded"


def test_a_cancelled_job_is_retried_to_its_end(
    home: Path, photos: Path, s3: str, head: Head
) -> None:
    output = f"{s3}/retried"
    words = ["predict", str(photos), *MODEL, "--output", output, "--cluster", "here", "--detach"]
    begun = eagleray(home, *words)
    assert begun.returncode == 0, begun.stderr
    name = begun.stderr.split("Job ")[1].split()[0]
    assert eagleray(home, "jobs", "cancel", name, "--cluster", "here").returncode == 0
    _wait_for_end(home, name)
    again = eagleray(home, "jobs", "retry", name, "--cluster", "here")
    assert again.returncode == 0, again.stderr
    assert rows(head, output).num_rows == 13


def _wait_for_end(home: Path, name: str) -> None:
    for _ in range(100):
        shown = eagleray(home, "jobs", "show", name, "--cluster", "here", "--json")
        if json.loads(shown.stdout)["state"] not in ("queued", "running"):
            return
        time.sleep(0.2)
    raise TimeoutError(name)


def test_a_mistake_of_the_user_ends_with_its_sentence_and_code(
    home: Path, photos: Path, s3: str
) -> None:
    result = eagleray(
        home, "predict", str(photos), "--model", "nobody@best", "--output", f"{s3}/n",
        "--cluster", "here",
    )  # fmt: skip
    assert result.returncode == ExitCode.USER
    assert "No registered model is named 'nobody'" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_doctor_examines_the_node_and_the_storage(home: Path, s3: str) -> None:
    words = ["doctor", "--output", f"{s3}/results", "--cluster", "here", "--json"]
    examined = eagleray(home, *words)
    assert examined.returncode == 0, examined.stdout + examined.stderr
    told = json.loads(examined.stdout)
    assert told["faults"] == 0
    nodes = {each["node"] for each in told["checks"]} - {"driver"}
    assert len(nodes) == 1
    assert {each["check"] for each in told["checks"] if each["node"] in nodes} >= {
        *("versions", "registry", "database", "read --output", "token", "clock"),
    }


def test_what_cannot_be_submitted_is_told_within_ten_seconds(
    home: Path, photos: Path, s3: str, tmp_path: Path, head: Head
) -> None:
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("0" * 64)
    eagleray(home, "cluster", "add", "wrong", head.address, "--token-file", str(wrong))
    nobody = "ray-jobs+http://127.0.0.1:9"
    eagleray(home, "cluster", "add", "gone", nobody, "--token-file", str(head.token_file))
    there = ["--output", f"{s3}/x"]
    for words, fault in (
        ([*there, "--cluster", "wrong"], "refuses the token"),
        ([*there, "--cluster", "gone"], "No job server of Ray answers"),
        ([*there, "--cluster", "hre"], "No cluster is named 'hre'. Nearest: here"),
        (["--output", "results", "--cluster", "here"], "on the disk of a machine of the cluster"),
        ([*there, "--cluster", "ray://head:10001"], "Ray Client does not carry Ray Data"),
    ):
        started = time.monotonic()
        result = eagleray(home, "predict", str(photos), *MODEL, *words)
        assert result.returncode == ExitCode.USER, result.stderr
        assert fault in " ".join(result.stderr.split())
        assert "Traceback" not in result.stderr
        assert time.monotonic() - started < 10
    listed = json.loads(eagleray(home, "jobs", "list", "--cluster", "here", "--json").stdout)
    assert not any(f"{s3}/x" in job["command"] for job in listed)
