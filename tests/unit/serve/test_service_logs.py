"""The log of a replica: a JSON object a line, written at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eagleray.serving.logs import log_access, log_event, log_to_file


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Path]:
    logger = logging.getLogger("eagleray")
    before = (logger.handlers, logger.level, logger.propagate)
    path = tmp_path / "logs/serve/replica-1.jsonl"
    log_to_file(path)
    yield path
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.level, logger.propagate = before


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_requests_events_and_messages_stand_there_at_once(lines: Path) -> None:
    log_access(path="/v1/models", status=200, request_id="r-1")
    (line,) = read(lines)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "kind": "access",
        "level": "info",
        "path": "/v1/models",
        "status": 200,
        "request_id": "r-1",
    }
    log_event(logging.ERROR, "failed", model="m", version=3)
    logging.getLogger("eagleray.serving.versions.model_cache").warning(
        "version %d of %s\nwaits", 3, "m"
    )
    assert [(line["kind"], line["level"]) for line in read(lines)[1:]] == [
        ("event", "error"),
        ("message", "warning"),
    ]
    assert read(lines)[2]["message"] == "version 3 of m\nwaits"


def test_a_defect_is_one_line_with_its_traceback(lines: Path) -> None:
    workers = "eagleray.serving.prediction.workers"
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger(workers).exception("a batch failed")
    (line,) = read(lines)
    assert (line["logger"], line["message"]) == (workers, "a batch failed")
    assert line["exception"].endswith("ValueError: broken")
