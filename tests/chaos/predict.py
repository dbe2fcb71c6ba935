"""`python -m jobs.predict` in a session of its own, and the processes that it starts."""

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

from tests.chaos.arena import ROOT
from tests.chaos.material import Material
from tests.chaos.places import Place
from tests.chaos.processes import die_with, end_orphans, family, kill, titled

WORKERS = ("ray::MapWorker",)
OF_RAY = ("ray::",)


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        code: Exit status; minus the signal that killed it.
        answer: What it printed for scripts; empty when it did not get that far.
    """

    code: int
    answer: dict[str, Any]


class Predict:
    """A running command.

    Args:
        material: What it works on.
        place: Of the output.
        output: Location.
        options: More words of the command line.
        environment: More variables.
    """

    def __init__(
        self,
        material: Material,
        place: Place,
        output: str,
        *,
        options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        command = [sys.executable, "-m", "jobs.predict", material.images]
        command += ["--model", material.model, "--output", output, "--json", *options]
        command += ["--precision", "float32", "--compile", "never"]
        if place.s3.endpoint is not None:
            command += ["--s3-endpoint", place.s3.endpoint]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()),  # noqa: PLW1509 - it makes one system call
        )
        self.pid = self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def family(self) -> list[psutil.Process]:
        """All processes that it has started, and those that they have."""
        return family(self.pid)

    def workers(self) -> list[psutil.Process]:
        """Actors that work on shards."""
        return titled(self.family(), *WORKERS)

    def processes_of_ray(self) -> list[psutil.Process]:
        """Every worker process of its Ray, whatever it does."""
        return titled(self.family(), *OF_RAY)

    def wait(self, seconds: float = 600.0) -> Finished:
        """Wait for its end; one that takes too long is killed.

        What it leaves behind is ended too.
        """
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
        started = self.family()
        self._process.kill()
        if with_family:
            for process in started:
                kill(process)
        self._process.communicate()
        return end_orphans(started)
