"""Commands that name a cluster: which stay here, and what a submission sends to the job server."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from eagleray.cli.remote import run_on_cluster
from eagleray.clusters.profiles import ClusterProfile, ClusterProfiles
from eagleray.core.errors import UnknownNameError, UserError
from eagleray.core.settings import read_settings
from tests.support.stub_server import Answer, Sent, stub_server

PREDICT = "eagleray.jobs.predict"


@dataclass
class Received:
    """What a job server was sent."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    ray: str = version("ray")
    outages: int = 0

    def answer(self, sent: Sent) -> Answer:
        """Accept everything; jobs succeed at once."""
        assert sent.headers["authorization"] == "Bearer abc"
        name = sent.path.rpartition("/")[2]
        if sent.method == "POST":
            self.jobs.append(json.loads(sent.body))
            return as_json({})
        if sent.method == "PUT":
            self.uploads[name] = sent.body
            return as_json({})
        if self.jobs and self.outages:
            self.outages -= 1
            return as_json({}, 502)
        if sent.path == "/api/version":
            return as_json({"ray_version": self.ray})
        if sent.path.startswith("/api/packages/"):
            return as_json({}, 200 if name in self.uploads else 404)
        if name == "logs":
            return as_json({"logs": "Running entrypoint for job x\nnote\n\x1fresult\n"})
        jobs = [self.describe(job) for job in self.jobs]
        if not name:
            return as_json(jobs)
        return as_json(next(job for job in jobs if job["submission_id"] == name))

    @staticmethod
    def describe(job: dict[str, Any]) -> dict[str, Any]:
        known = {"submission_id": job["submission_id"], "metadata": job["metadata"]}
        return {**known, "status": "SUCCEEDED"}


def as_json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode())


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    """Run a job server under the name `far`."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    received = Received()
    with stub_server(received.answer) as server:
        name_cluster("far", f"ray-jobs+{server.url}")
        yield received


def name_cluster(name: str, address: str) -> None:
    settings = read_settings()
    profiles = ClusterProfiles.read(settings).with_profile(name, ClusterProfile(address=address))
    profiles.write(settings)


def submitted(*words: str) -> int:
    """Return the exit code of a command that runs elsewhere."""
    with pytest.raises(SystemExit) as caught:
        run_on_cluster("predict", PREDICT, words)
    code = caught.value.code
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize("program", ["serve", "gateway", "demo"])
def test_the_service_and_its_gateway_stay_here(program: str) -> None:
    words = ["--cluster", "nobody"]
    assert run_on_cluster(program, PREDICT, words) == words


def test_a_command_without_a_cluster_stays_here() -> None:
    words = ["photos", "--model", "m@production", "--output", "results"]
    assert run_on_cluster("predict", PREDICT, words) == words
    assert run_on_cluster("predict", PREDICT, ["--cluster", "nobody", "--help"])[-1] == "--help"


@pytest.mark.parametrize("words", [["--cluster", "near"], ["--cluster=near"]])
def test_a_name_becomes_the_address_that_a_process_joins(words: list[str]) -> None:
    name_cluster("near", "head:6379")
    assert run_on_cluster("predict", PREDICT, ["photos", *words]) == [
        "photos",
        "--cluster",
        "head:6379",
    ]


def test_commands_join_the_cluster_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_RAY_ADDRESS", "")  # restored afterwards
    name_cluster("near", "head:6379")
    settings = read_settings()
    profiles = ClusterProfiles.read(settings).model_copy(update={"used": "near"})
    profiles.write(settings)
    assert run_on_cluster("predict", PREDICT, ["photos"]) == ["photos"]
    assert read_settings().ray_address == "head:6379"


def test_an_unknown_cluster_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="No cluster is named 'nobody'"):
        run_on_cluster("predict", PREDICT, ["photos", "--cluster", "nobody"])


def test_words_travel_as_a_list_with_small_inputs(
    received: Received, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my photos; rm -rf $HOME"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"a")
    words = [str(folder), "--model", "m@production", "--output", "s3://results/1"]
    assert submitted(*words, "--cluster", "far") == 0
    (job,) = received.jobs
    ((package, content),) = received.uploads.items()
    submission = json.loads(job["runtime_env"]["env_vars"]["EAGLERAY_SUBMISSION"])
    assert submission["record"]["program"] == "predict"
    assert submission["record"]["words"] == [f"inputs/0/{folder.name}", *words[1:]]
    assert submission["version"] == version("eagleray")
    assert job["runtime_env"]["working_dir"] == f"gcs://{package}"
    assert "rm" not in job["entrypoint"]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == [f"inputs/0/{folder.name}/a.jpg"]
    shown = capsys.readouterr()
    assert shown.out == "result\n"
    assert shown.err.endswith("note\n")
    assert "entrypoint" not in shown.err
    received.uploads[package] = b"kept"
    assert submitted(*words, "--cluster", "far", "--detach") == 0
    assert received.uploads == {package: b"kept"}


def test_a_job_is_followed_through_an_outage(
    received: Received, capsys: pytest.CaptureFixture[str]
) -> None:
    received.outages = 2
    words = ["s3://photos/", "--model", "m@production", "--output", "s3://results/1"]
    assert submitted(*words, "--cluster", "far") == 0
    assert received.outages == 0
    shown = capsys.readouterr()
    assert shown.out == "result\n"
    assert "is submitted to far." in shown.err


def test_a_wrong_option_is_refused_before_anything_is_sent(
    received: Received, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted("photos", "--modle", "m", "--cluster", "far") == 2
    assert "No such option: --modle" in capsys.readouterr().err
    assert received.jobs == []


def test_another_version_of_ray_is_refused(received: Received) -> None:
    received.ray = "1.2.3"
    words = ["s3://photos/", "--model", "m@production", "--output", "s3://results/1"]
    with pytest.raises(UserError, match=r"runs Ray 1\.2\.3 and this machine has"):
        run_on_cluster("predict", PREDICT, [*words, "--cluster", "far"])
    assert received.jobs == []
