"""Writes the log of a replica: one JSON object a line, for each request, event and message.

Each replica writes its own file, and each line immediately. Ray Serve's logger would buffer a
thousand lines, which are lost when a replica dies, add a prefix, and take a tenth of the time of a
small request.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

__all__ = ["log_access", "log_event", "log_to_file"]

_access = logging.getLogger("eagleray.access")
_events = logging.getLogger("eagleray.events")

_FIELDS = "eagleray_fields"  # attribute of a record with the fields that replace its message
_FILE_BYTES = 64_000_000
_NUM_BACKUPS = 4


def log_access(**fields: Any) -> None:
    """Log a request that has ended."""
    _access.info("request", extra={_FIELDS: {"kind": "access", **fields}})


def log_event(level: int, event: str, **fields: Any) -> None:
    """Log an event of a version or of a part of the service."""
    _events.log(level, "event", extra={_FIELDS: {"kind": "event", "event": event, **fields}})


def log_to_file(path: Path) -> None:
    """Write requests, events and all messages of the package to a file.

    A full file is rotated, and the oldest rotated file is deleted.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds what callers request
    handler = RotatingFileHandler(path, maxBytes=_FILE_BYTES, backupCount=_NUM_BACKUPS)
    handler.setFormatter(_JsonLines())
    logger = logging.getLogger("eagleray")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [handler]


class _JsonLines(logging.Formatter):
    """Formats a record as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower()}
        fields = record.__dict__.get(_FIELDS)
        if fields is None:
            fields = {"kind": "message", "logger": record.name, "message": record.getMessage()}
            if record.exc_info:
                fields["exception"] = self.formatException(record.exc_info)
        # ASCII, so no text controls a terminal; DEL is the one control character JSON leaves as is.
        return json.dumps(line | fields).replace("\x7f", "\\u007f")
