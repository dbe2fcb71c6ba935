"""Commands that name a cluster: which stay here, and what a submission sends to the job server."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from eagleray.cli.remote import run_on_cluster
from eagleray.clusters.profiles import ClusterProfile, ClusterProfiles
from eagleray.core.errors import UnknownNameError, UserError
from eagleray.core.settings import read_settings

PREDICT = "eagleray.jobs.predict"


@dataclass
class Received:
    """What a job server was sent."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    ray: str = version("ray")
    outages: int = 0


class Server(ThreadingHTTPServer):
    """A job server that accepts everything; jobs succeed at once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received = Received()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        received, name = self.server.received, self.path.rpartition("/")[2]
        if received.jobs and received.outages:
            received.outages -= 1
            self.answer({}, 502)
        elif self.path == "/api/version":
            self.answer({"ray_version": received.ray})
        elif self.path.startswith("/api/packages/"):
            self.answer({}, 200 if name in received.uploads else 404)
        elif name == "logs":
            self.answer({"logs": "Running entrypoint for job x\nnote\n\x1fresult\n"})
        else:
            self.answer({"submission_id": name, "status": "SUCCEEDED"})

    def do_POST(self) -> None:
        self.server.received.jobs.append(json.loads(self.body()))
        self.answer({})

    def do_PUT(self) -> None:
        self.server.received.uploads[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, value: Any, status: int = 200) -> None:
        assert self.headers["Authorization"] == "Bearer abc"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    """Run a job server under the name `far`."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        name_cluster("far", f"ray-jobs+http://127.0.0.1:{server.server_port}")
        yield server.received
        server.shutdown()
        thread.join()


def name_cluster(name: str, address: str) -> None:
    settings = read_settings()
    profiles = ClusterProfiles.read(settings).with_profile(name, ClusterProfile(address=address))
    profiles.write(settings)


def submitted(*words: str) -> int:
    """Return the exit code of a command that runs elsewhere."""
    with pytest.raises(SystemExit) as caught:
        run_on_cluster(PREDICT, words)
    code = caught.value.code
    assert isinstance(code, int)
    return code


def test_a_command_without_a_cluster_stays_here() -> None:
    words = ["photos", "--model", "m@production", "--output", "results"]
    assert run_on_cluster(PREDICT, words) == words
    assert run_on_cluster(PREDICT, ["--cluster", "nobody", "--help"])[-1] == "--help"


@pytest.mark.parametrize("words", [["--cluster", "near"], ["--cluster=near"]])
def test_a_name_becomes_the_address_that_a_process_joins(words: list[str]) -> None:
    name_cluster("near", "head:6379")
    assert run_on_cluster(PREDICT, ["photos", *words]) == ["photos", "--cluster", "head:6379"]


def test_commands_join_the_cluster_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_RAY_ADDRESS", "")  # restored afterwards
    name_cluster("near", "head:6379")
    settings = read_settings()
    profiles = ClusterProfiles.read(settings).model_copy(update={"used": "near"})
    profiles.write(settings)
    assert run_on_cluster(PREDICT, ["photos"]) == ["photos"]
    assert read_settings().ray_address == "head:6379"


def test_an_unknown_cluster_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="No cluster is named 'nobody'"):
        run_on_cluster(PREDICT, ["photos", "--cluster", "nobody"])


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
    assert submission["program"] == "predict"
    assert submission["words"] == [f"inputs/0/{folder.name}", *words[1:]]
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
        run_on_cluster(PREDICT, [*words, "--cluster", "far"])
    assert received.jobs == []
