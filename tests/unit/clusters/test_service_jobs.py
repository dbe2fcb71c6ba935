"""Commands by a service's door, against its HTTP application: what is sent, shown and refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from eagleray.cli import submitted
from eagleray.cli.console import Console
from eagleray.cli.remote import jobs_on, run_on_cluster
from eagleray.clusters.connect import connect
from eagleray.clusters.profiles import ClusterProfile, ClusterProfiles
from eagleray.core.errors import ExitCode, InputError, OutageError, UnknownNameError, UserError
from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings, read_settings
from eagleray.core.system import free_port
from eagleray.registry.registry import Registry
from eagleray.scheduling.logs import LogWriter
from eagleray.serving.callers.applications import Applications
from eagleray.serving.callers.roles import Role, Roles
from tests.support.http_service import Served, http_service
from tests.support.serving import end_cancelled, records_of, registry_with, run_job
from tests.support.stub_server import Answer, Sent, stub_server

DATA = "s3://bucket/photos/*.png"  # a pattern, which the job itself looks for
PROGRAMS = {name: f"eagleray.jobs.{name}" for name in ("predict", "train", "tune", "evaluate")}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return registry_with(tmp_path / "service", "digits")


@pytest.fixture
def served(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Run a service under the name `lab`, with the key of an application that may train."""
    database = registry.history.database
    monkeypatch.setenv("EAGLERAY_API_KEY", Applications(database, actor="t").create("lab").key)
    Roles(database).grant("lab", Role.TRAIN, "*")
    places: dict[str, Any] = {
        "batch_inputs": ("s3://bucket/photos",),
        "batch_outputs": ("s3://bucket/results",),
    }
    with http_service(registry, **places) as running:
        settings = read_settings()
        profile = ClusterProfile(address=running.url)
        ClusterProfiles.read(settings).with_profile("lab", profile).write(settings)
        yield running


def submit(program: str, *words: str) -> int:
    """Return the exit code of a command by the service."""
    with pytest.raises(SystemExit) as caught:
        run_on_cluster(program, PROGRAMS[program], [*words, "--cluster", "lab"])
    code = caught.value.code
    assert isinstance(code, int)
    return code


TRAIN = [DATA, "--name", "digits", "--architecture", "lenet5"]


def test_a_specification_travels_and_no_command_line(
    served: Served, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "digits.yaml"
    file.write_text("epochs: 3\nlearning_rate: 1e-3\n")
    words = [*TRAIN, "--spec", str(file), "--epochs", "5", "--priority", "0", "--retries", "2"]
    assert submit("train", *words, "--detach") == 0
    (row,) = records_of(registry).recent()
    assert row.request["spec"] == {
        "data": DATA,
        "name": "digits",
        "architecture": "lenet5",
        "epochs": 5,
        "learning_rate": 1e-3,
    }
    assert (row.owner, row.application, row.retries) == ("lab", "lab", 2)
    assert row.words == ["--spec", "env:EAGLERAY_JOB_SPEC"]
    assert f"Job {row.id} is submitted to lab." in " ".join(capsys.readouterr().err.split())
    assert [started.job for started in served.launcher.started] == [row.id]


def test_small_texts_travel_within_the_request(
    served: Served, registry: Registry, tmp_path: Path
) -> None:
    kpi, space = tmp_path / "kpi.txt", tmp_path / "space.yaml"
    kpi.write_text("accuracy >= 0.9\n")
    space.write_text("search:\n  learning_rate: {log_uniform: [1e-4, 1e-2]}\n")
    output = ["--output", "s3://bucket/results/page.html"]
    assert submit("evaluate", "digits", DATA, "--kpi", str(kpi), *output, "--detach") == 0
    assert submit("tune", *TRAIN, "--space", str(space), "--num-trials", "2", "--detach") == 0
    tuned, evaluated = records_of(registry).recent()
    assert evaluated.request["spec"]["kpi"] == "text:accuracy >= 0.9\n"
    assert tuned.spec is not None
    assert list(tuned.spec["search"]) == ["learning_rate"]
    assert served.launcher.started[1].job == tuned.id


def play(registry: Registry, exit_code: int) -> None:
    """Run the job that waits: print on both streams, and end."""
    records = records_of(registry)
    deadline = time.monotonic() + 30
    while not (rows := records.recent()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run_job(registry, rows[0].id, JobState.RUNNING)
    row = records.get(rows[0].id)
    log = LogWriter(row.logs, row.epoch, seconds=0.1)
    log.add("Predicting 1/2\n", is_output=False)
    log.add('{"ok": 2}\n', is_output=True)
    log.close()
    ended = JobState.FAILED if exit_code else JobState.SUCCEEDED
    assert records.end(row, ended, exit_code=exit_code, message="A KPI failed.")


@pytest.mark.parametrize("exit_code", [0, ExitCode.KPI_FAILED])
def test_a_job_is_followed_to_its_exit_code(
    served: Served, registry: Registry, capsys: pytest.CaptureFixture[str], exit_code: int
) -> None:
    thread = threading.Thread(target=play, args=(registry, exit_code))
    thread.start()
    assert submit("train", *TRAIN) == exit_code
    thread.join()
    shown = capsys.readouterr()
    assert shown.out == '{"ok": 2}\n'
    assert shown.err.endswith("Predicting 1/2\n")
    (job,) = jobs_on("lab").jobs()
    assert (job.user, job.exit_code) == ("lab", exit_code)
    assert job.command.startswith(f"eagleray train --data '{DATA}' --name digits")
    assert submitted.attach_submitted("lab", job.name[:9]) == exit_code
    submitted.show_submitted("lab", job.name, Console(json_output=True))
    told = json.loads(capsys.readouterr().out.removeprefix('{"ok": 2}\n'))
    assert (told["job"], told["attempt"]) == (job.name, 1)
    with pytest.raises(UnknownNameError, match="No job is named 'nothing'"):
        submitted.print_submitted_logs("lab", "nothing")


def test_a_job_is_cancelled_and_retried(
    served: Served, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("train", *TRAIN, "--detach") == 0
    (row,) = records_of(registry).recent()
    submitted.cancel_submitted("lab", row.id, Console())
    assert "is asked to stop" in capsys.readouterr().out
    end_cancelled(registry, row.id)
    cluster = jobs_on("lab")
    job = cluster.job(row.id)
    assert job.state == JobState.CANCELLED
    assert cluster.retry(job, name="another") == row.id
    assert served.launcher.started[-1].submission == f"{row.id}.2"


@pytest.mark.parametrize(
    ("program", "words", "fault"),
    [
        ("predict", ["photos", "--model", "m", "--output", "s3://b/x"], "is on this disk, or now"),
        ("predict", ["file:///p", "--model", "m", "--output", "s3://b/x"], "is on this disk"),
        ("predict", [DATA, "--model", "m", "--output", "results"], "disk of a machine"),
        ("predict", [DATA, "--model", ".", "--output", "s3://b/x"], "is on this disk"),
        ("predict", [DATA, "--model", "m", "--output", "s3://b/x", "--quote"], "--quote is not"),
        ("train", [*TRAIN, "--parent", "."], "aws s3 cp --recursive . s3://BUCKET/"),
        ("train", [*TRAIN, "--epochs", "none"], "--epochs must be a valid integer"),
        ("train", ["--resume", "digits-1"], "--resume is not for jobs of a service"),
        ("train", [*TRAIN, "--transform", "a:b"], "transform is set by the operator"),
        ("train", [DATA, "--name", "digits", "--alias", "production"], "apps grant lab promote"),
        ("evaluate", ["digits", DATA, "--kpi", "nowhere.txt"], "There is no KPI file nowhere.txt"),
    ],
)
def test_mistakes_are_one_sentence_and_submit_nothing(
    served: Served,
    registry: Registry,
    program: str,
    words: list[str],
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        run_on_cluster(program, PROGRAMS[program], [*words, "--cluster", "lab"])
    assert fault in str(caught.value)
    assert str(caught.value).endswith(".")
    assert records_of(registry).recent() == []


def test_a_command_that_the_service_does_not_take_is_refused(served: Served) -> None:
    with pytest.raises(InputError, match=r"`eagleray doctor` cannot be sent to a service"):
        run_on_cluster("doctor", "eagleray.jobs.doctor", ["--cluster", "lab"])


def test_a_wrong_key_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_API_KEY", "er_wrong")
    with pytest.raises(UserError, match="refuses the key") as caught:
        jobs_on("lab")
    assert "er_wrong" not in str(caught.value)


@pytest.fixture
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_API_KEY", "er_key")


@pytest.mark.usefixtures("_key")
def test_an_unreachable_service_is_told_within_ten_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(OutageError, match=r"No service answers at http://127\.0\.0\.1"):
        connect(ClusterProfile(address=f"http://127.0.0.1:{free_port()}"))
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("_key")
@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (Answer(404, b"<html>", {"Content-Type": "text/html"}), "not of a service of Eagleray"),
        (Answer(302, b"", {"Location": "https://login.example.com/"}), "it is not followed"),
        (
            Answer(
                200, b'{"name": "triton", "version": "1"}', {"Content-Type": "application/json"}
            ),
            "not that of a service of Eagleray",
        ),
        (
            Answer(
                200,
                b'{"name": "eagleray", "version": "99.1.0"}',
                {"Content-Type": "application/json"},
            ),
            f"runs Eagleray 99.1.0 and this machine has {version('eagleray')}",
        ),
    ],
)
def test_another_server_or_version_is_told(answer: Answer, fault: str) -> None:
    def reply(_: Sent) -> Answer:
        return answer

    with stub_server(reply) as server, pytest.raises(UserError) as caught:
        connect(ClusterProfile(address=server.url))
    assert fault in str(caught.value)
    assert {sent.headers["authorization"] for sent in server.requests} == {"Bearer er_key"}


def test_the_settings_of_the_service_stay_there(served: Served, registry: Registry) -> None:
    assert registry.settings.home_folder != Settings().home_folder
    assert submit("train", *TRAIN, "--detach") == 0
    assert not (Settings().home_folder / "job-logs").exists()
