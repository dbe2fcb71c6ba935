"""Log lines as JSON objects, for programs that collect them: `EAGLERAY_LOG_FORMAT=json`.

A line has `time`, `level`, `kind`, `logger` and `message`, and `job_id` once the process has a job.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

from eagleray.core.settings import Settings

__all__ = ["FIELDS", "JsonLines", "add_to_lines", "log_to_stderr", "use_log_format", "writes_json"]

FIELDS: Final = "eagleray_fields"
"""Attribute of a record with the fields that replace its logger and its message."""

_logger = logging.getLogger("eagleray")
_of_process: dict[str, Any] = {}


def use_log_format(settings: Settings) -> None:
    """Write what a command says as the settings ask; a person at a terminal gets text."""
    if settings.log_format == "json" and not sys.stderr.isatty():
        log_to_stderr()


def log_to_stderr() -> None:
    """Write all messages of the package to standard error, one JSON object a line."""
    if not writes_json():
        _logger.addHandler(_StandardError())
        _logger.setLevel(logging.INFO)
        _logger.propagate = False


def writes_json() -> bool:
    """Whether standard error gets JSON lines."""
    return any(isinstance(handler, _StandardError) for handler in _logger.handlers)


def add_to_lines(**fields: Any) -> None:
    """Add fields, such as the id of the job, to all later lines of this process."""
    _of_process.update(fields)


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of ASCII, so no text controls a terminal or forges another line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower()}
        fields = record.__dict__.get(FIELDS)
        if fields is None:
            fields = {"kind": "message", "logger": record.name, "message": record.getMessage()}
            if record.exc_info:
                fields["exception"] = self.formatException(record.exc_info)
        # DEL is the one control character that JSON leaves as it is.
        return json.dumps(line | _of_process | fields).replace("\x7f", "\\u007f")


class _StandardError(logging.Handler):
    """Writes JSON lines to whatever standard error is at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as every handler of the standard library
            self.handleError(record)
