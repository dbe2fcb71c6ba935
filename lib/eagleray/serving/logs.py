"""The service's own log: one JSON object a line, for each request and each event of a version."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

__all__ = ["log_access", "log_event", "log_to_stdout"]

_access = logging.getLogger("eagleray.access")
_events = logging.getLogger("eagleray.events")


def log_access(**fields: Any) -> None:
    """Write down a request that was answered."""
    _access.info(_line("access", logging.INFO, fields))


def log_event(level: int, **fields: Any) -> None:
    """Write down something that happened to a version."""
    _events.log(level, _line("event", level, fields))


def log_to_stdout() -> None:
    """Send both to standard output, from where containers and Ray collect them."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for logger in (_access, _events):
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers = [handler]


def _line(kind: str, level: int, fields: dict[str, Any]) -> str:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps(
        {"time": time, "kind": kind, "level": logging.getLevelName(level).lower(), **fields}
    )
