"""Writes the log of a replica: one JSON object a line, for each request, event and message.

Each replica writes its own file, and each line immediately. Ray Serve's logger would buffer a
thousand lines, which are lost when a replica dies, add a prefix, and take a tenth of the time of a
small request.
"""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from eagleray.core.logs import FIELDS, JsonLines, log_to_stderr, writes_json

__all__ = ["log_access", "log_event", "log_to_file"]

_access = logging.getLogger("eagleray.access")
_events = logging.getLogger("eagleray.events")

_FILE_BYTES = 64_000_000
_NUM_BACKUPS = 4


def log_access(**fields: Any) -> None:
    """Log a request that has ended."""
    _access.info("request", extra={FIELDS: {"kind": "access", **fields}})


def log_event(level: int, event: str, **fields: Any) -> None:
    """Log an event of a version or of a part of the service."""
    _events.log(level, "event", extra={FIELDS: {"kind": "event", "event": event, **fields}})


def log_to_file(path: Path) -> None:
    """Write requests, events and all messages of the package to a file.

    A full file is rotated, and the oldest rotated file is deleted.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds what callers request
    handler = RotatingFileHandler(path, maxBytes=_FILE_BYTES, backupCount=_NUM_BACKUPS)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("eagleray")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    to_stderr = writes_json()
    logger.handlers = [handler]
    if to_stderr:
        log_to_stderr()
