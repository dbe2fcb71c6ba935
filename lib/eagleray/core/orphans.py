"""Ends the processes of an embedded Ray when the process that started it dies.

    python orphans.py VARIABLE VALUE    wait until standard input ends, then kill every process that
                                        was started with this environment variable

A driver that is killed runs no code of its own. Ray's daemons notice its end, but workers that are
busy stay for as long as they compute. The system closes the pipe to this program in any case. It
imports nothing of the package, so that it starts quickly. Without /proc it does nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

__all__ = ["kill_marked"]

_SECONDS = 5.0  # processes that start meanwhile are found in a later round
_PAUSE = 0.1


def kill_marked(variable: str, value: str) -> int:
    """Kill all processes of this user that were started with an environment variable.

    Args:
        variable: Name of the variable.
        value: Its value, which no other process may have.

    Returns:
        The number of processes that were killed.
    """
    mark, killed = os.fsencode(f"{variable}={value}"), 0
    for folder in Path("/proc").glob("[0-9]*"):
        # A process may end at any time, or belong to another user.
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
                killed += 1
    return killed


def _main() -> None:
    variable, value = sys.argv[1:]
    sys.stdin.buffer.read()
    deadline = time.monotonic() + _SECONDS
    while kill_marked(variable, value) and time.monotonic() < deadline:
        time.sleep(_PAUSE)


if __name__ == "__main__":
    _main()
