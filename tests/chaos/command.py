"""A command of the project in a session of its own, and the processes that it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from tests.chaos.workspace import ROOT
from tests.support.processes import end_orphans, exit_with_parent, family, kill


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        code: Exit status; minus the signal that killed it.
        summary: JSON that it printed; empty if it ended before that.
    """

    code: int
    summary: dict[str, Any]


class Command:
    """A running command.

    Args:
        words: Words of the command line after `python -m`.
        environment: Additional variables.
    """

    def __init__(self, words: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=partial(exit_with_parent, os.getpid()),  # noqa: PLW1509 - it makes one system call
        )
        self.pid = self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def family(self) -> list[psutil.Process]:
        """All processes that it has started, and those that they have."""
        return family(self.pid)

    def wait(self, seconds: float = 600.0) -> Finished:
        """Wait for its end; kill it if it takes too long, and end its processes."""
        started = self.family()
        try:
            text, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            started = self.family()
            self._process.kill()
            text, _ = self._process.communicate()
        end_orphans(started)
        return Finished(self._process.returncode, json.loads(text) if text.strip() else {})

    def kill(self, *, with_family: bool) -> int:
        """Kill the driver, and with it all that it has started or only itself.

        Returns:
            Processes that outlived it for long and were ended by us.
        """
        return end_orphans(self.leave(with_family=with_family))

    def leave(self, *, with_family: bool) -> list[psutil.Process]:
        """Kill in the same way without waiting, and return the processes that may outlive it."""
        started = self.family()
        self._process.kill()
        if with_family:
            for process in started:
                kill(process)
        self._process.wait()
        return started
