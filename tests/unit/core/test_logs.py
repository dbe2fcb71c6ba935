"""JSON lines on standard error: what a command reports, for programs that collect logs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from eagleray.cli.console import Console, command_errors
from eagleray.core import logs
from eagleray.core.errors import InputError
from eagleray.core.settings import Settings


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logger = logging.getLogger("eagleray")
    before = (logger.handlers[:], logger.level, logger.propagate)
    monkeypatch.setattr(logs, "_of_process", {})
    yield
    logger.handlers, logger.level, logger.propagate = before


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_what_a_command_reports_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.use_log_format(Settings(log_format="json"))
    logs.use_log_format(
        Settings(log_format="json")
    )  # once for the service and once for its gateway
    console = Console()
    console.note("12 images\nin two lines \x1b[31m")
    logs.add_to_lines(job_id="predict-1")
    console.warn("one is broken")
    logging.getLogger("eagleray.registry").warning("%s is slow", "it")
    with console.progress("Predicting", 10) as bar:
        bar.advance(10, failed=2)
    first, *others = lines(capsys)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "kind": "message",
        "logger": "eagleray.console",
        "message": "12 images\nin two lines \x1b[31m",
    }
    assert [(line["level"], line["message"], line["job_id"]) for line in others] == [
        ("warning", "one is broken", "predict-1"),
        ("warning", "it is slow", "predict-1"),
        ("info", "Predicting 10/10  2 failed", "predict-1"),
    ]


def test_a_mistake_is_one_line_and_the_exit_code_of_its_kind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.use_log_format(Settings(log_format="json"))
    with pytest.raises(SystemExit) as end, command_errors():
        raise InputError("There is no such folder; name another.")
    assert end.value.code == 2
    (line,) = lines(capsys)
    assert (line["level"], line["message"]) == ("error", "There is no such folder; name another.")


def test_a_person_at_a_terminal_reads_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.use_log_format(Settings(log_format="json"))
    Console().note("12 images")
    assert "12 images" in capsys.readouterr().err
    assert not logs.writes_json()
