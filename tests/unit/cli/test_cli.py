"""The command line as far as it starts no job: help, launching, and errors."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from eagleray.cli import main as cli
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import run_command
from eagleray.core.errors import ExitCode, InputError, JobFailedError, resumable
from eagleray.jobs import train, tune
from eagleray.registry.registry import Registry
from tests.support.mlflow_database import prepare_home
from tests.support.models import small_package

runner = CliRunner()


class LaunchedError(Exception):
    """What would have replaced this process."""


def test_a_job_gets_the_words_as_they_were_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    def become(program: str, command: list[str]) -> NoReturn:
        raise LaunchedError(command[1:])

    monkeypatch.setattr(os, "execv", become)
    words = ["predict", "a b.png", "--model", "x@y", "--output", "o", "--help"]
    result = runner.invoke(cli.app, words)
    assert isinstance(result.exception, LaunchedError)
    (command,) = result.exception.args
    assert command == ["-P", "-m", "eagleray.cli.launch", "eagleray.jobs.predict", *words[1:]]


HEARD: list[str] = []


def program(inputs: list[str]) -> None:
    """Hear the words."""
    HEARD.extend(inputs)


def test_words_that_are_not_utf8_become_text(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = os.fsdecode(b"caf\xe9/")
    monkeypatch.setattr(sys, "argv", ["program", raw, "b"])
    HEARD.clear()
    with pytest.raises(SystemExit):
        run_command(program, module_docstring="eagleray program INPUT")
    assert HEARD == ["caf\\xe9/", "b"]


def test_a_command_says_a_name_that_is_not_utf8(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["eagleray", "jobs", "show", os.fsdecode(b"/caf\xe9")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == ExitCode.USER
    assert "No job is named" in capsys.readouterr().err


def test_help_teaches_by_example() -> None:
    text = runner.invoke(cli.app, ["--help"]).output
    assert "eagleray predict photos/ --model flowers@candidate --output results/" in text
    for job in ("train", "predict", "demo", "models"):
        assert job in text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("Mend the path."), ExitCode.USER),
        (JobFailedError("It stopped."), ExitCode.JOB_FAILED),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, command_errors():
        raise error
    assert caught.value.code == code
    shown = capsys.readouterr().err
    assert (str(error) or "interrupted") in shown
    assert "Traceback" not in shown


def test_an_interrupted_job_names_the_command_that_resumes_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(SystemExit) as caught,
        command_errors(),
        resumable("eagleray train --resume a"),
    ):
        raise KeyboardInterrupt
    assert caught.value.code == ExitCode.INTERRUPTED
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["interrupted", "resume with: eagleray train --resume a"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--learning-rate", "0.1", "--epochs", "9"], "leave out --learning-rate, or begin"),
        (["--spec", "a.yaml"], "leave out --spec, or begin"),
        (["--alias", "live", "--force"], "leave out --alias, --force, or begin"),
        (["data/", "--s3-region", "x"], "leave out --s3-region, DATA, or begin"),
    ],
)
def test_a_resumed_run_takes_no_options_but_its_epochs(
    words: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train", "--resume", "digits-1234", *words])
    with pytest.raises(SystemExit) as caught:
        run_command(train.main, module_docstring=train.__doc__)
    assert caught.value.code == ExitCode.USER
    told = capsys.readouterr().err
    assert "--resume continues run digits-1234 with its own specification, of which" in told
    assert f"{named} a new run with --from digits-1234." in told


def test_a_resumed_tuning_names_the_options_that_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path))
    words = ["--num-trials", "5", "--space", "s.yaml", "--epochs", "3"]
    monkeypatch.setattr(sys, "argv", ["tune", "--resume", "digits-1234", *words])
    with pytest.raises(SystemExit) as caught:
        run_command(tune.main, module_docstring=tune.__doc__)
    assert caught.value.code == ExitCode.USER
    assert "leave out --epochs, --space, --num-trials, or begin" in capsys.readouterr().err


def test_where_a_run_is_kept_is_printed_for_scripts_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(json_output=True)
    console.note("hidden")
    console.announce("run digits-1234, in runs/digits-1234")
    assert capsys.readouterr() == ("", "run digits-1234, in runs/digits-1234\n")


def test_lines_of_a_job_stay_and_take_the_place_of_tenths(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console()
    with console.progress("Images", 100) as bar:
        for number in range(1, 11):
            bar.line(f"epoch {number}")
            bar.advance(10)
    assert capsys.readouterr().err.splitlines() == [f"epoch {number}" for number in range(1, 11)]


def test_progress_outside_a_terminal_says_the_failures(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    with console.progress("Predicting", 100) as bar:
        for _ in range(100):
            bar.advance(1, failed=1)
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[-1] == "Predicting 100/100  100 failed"
    assert len(lines) == 10


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EAGLERAY_HOME", str(prepare_home(tmp_path / "home")))
    return tmp_path


def test_models_are_listed_shown_verified_aliased_and_exported(home: Path) -> None:
    def run(*words: str) -> str:
        result = runner.invoke(cli.app, ["models", *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "No model is registered yet" in run("list")
    package = small_package(name="digits", metrics={"test_accuracy": 0.875})
    Registry().register(package)
    run("alias", "digits", "production", "1")
    listed = json.loads(run("list", "--json"))
    assert listed[0]["model"] == "digits/1"
    assert listed[0]["aliases"] == ["production"]
    assert listed[0]["metrics"] == {"test_accuracy": 0.875}
    shown = json.loads(run("show", "digits@production", "--json"))
    assert shown["digest"] == package.digest
    assert shown["contract_digest"] == package.contract.digest
    assert "0.8750" in run("show", "digits/1")
    measured = json.loads(
        run("measure", "digits/1", "--seconds", "0.1", "--engine", "eager", "--json")
    )
    assert measured["keeps_budget"] is (measured["p95"] <= 33.3)
    assert measured["images_per_second"] > 0
    (kept,) = json.loads(run("show", "digits@production", "--json"))["latencies"]
    assert kept["p95"] == measured["p95"]
    assert "33 ms a frame" in run("show", "digits/1")
    verified = json.loads(run("verify", "digits/1", "--json"))
    assert verified["golden_images"] > 0
    assert verified["max_difference"] <= verified["tolerance"]
    run("export", "digits/1", "--output", str(home / "exported"))
    assert json.loads(run("register", str(home / "exported"), "--json"))["model"] == "digits/2"
    assert "digits/1" in run("list", "digits")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show", "nothing@production"], "No registered model is named 'nothing'"),
        (["show", "resnet18"], "random:resnet18"),
        (["alias", "digits", "latest", "1"], "cannot be an alias"),
        (["architectures", "zzz"], "No architecture has 'zzz'"),
    ],
)
def test_a_users_mistake_is_a_sentence(home: Path, words: list[str], sentence: str) -> None:
    result = runner.invoke(cli.app, ["models", *words])
    assert result.exit_code == ExitCode.USER
    assert sentence in " ".join(result.output.split())
    assert "Traceback" not in result.output
