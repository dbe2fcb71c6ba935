"""The service's own log: one JSON object a line, for each request and each event of a version.

A replica writes a file of its own, and each line at once. Ray Serve would keep a thousand lines in
memory, which are gone with a replica that dies; put words of its own before them; and take a tenth
of the time of a small request to find out who wrote them.
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

_FIELDS = "eagleray_fields"  # of a record: what is written in place of a message
_FILE_BYTES = 64_000_000
_OLD_FILES = 4


def log_access(**fields: Any) -> None:
    """Write down a request that was answered."""
    _access.info("request", extra={_FIELDS: {"kind": "access", **fields}})


def log_event(level: int, **fields: Any) -> None:
    """Write down something that happened to a version."""
    _events.log(level, "event", extra={_FIELDS: {"kind": "event", **fields}})


def log_to_file(path: Path) -> None:
    """Write both to a file, and with them every message of the package.

    The file is put aside when it is full, and the oldest of those then goes.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it has what callers ask
    handler = RotatingFileHandler(path, maxBytes=_FILE_BYTES, backupCount=_OLD_FILES)
    handler.setFormatter(_JsonLines())
    logger = logging.getLogger("eagleray")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [handler]


class _JsonLines(logging.Formatter):
    """Writes a record as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower()}
        fields = record.__dict__.get(_FIELDS)
        if fields is None:
            fields = {"kind": "message", "from": record.name, "message": record.getMessage()}
            if record.exc_info:
                fields["exception"] = self.formatException(record.exc_info)
        # In ASCII, so no text steers a terminal; DEL is the one character that JSON lets through.
        return json.dumps(line | fields).replace("\x7f", "\\u007f")
