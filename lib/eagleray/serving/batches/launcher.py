"""The interface through which the service runs batch jobs; `serve/launcher.py` runs them on Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from eagleray.core.job_state import JobState

__all__ = ["Capacity", "LaunchedJob", "Launcher"]


@dataclass(frozen=True, slots=True)
class LaunchedJob:
    """The state of a job, as its launcher knows it.

    Attributes:
        state: State of the job.
        message: Error message of a failed job.
    """

    state: JobState
    message: str = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The capacity for jobs.

    Attributes:
        cpus: Number of CPU cores of the cluster, used or not.
        gpus: Number of GPUs of the cluster, used or not.
        waits: Whether a job waits in a queue until others have ended.
    """

    cpus: float
    gpus: float
    waits: bool


class Launcher(Protocol):
    """Runs commands as jobs that outlive the process that started them."""

    def capacity(self) -> Capacity:
        """Return the capacity for jobs.

        Raises:
            NotReadyError: If there is nothing that runs jobs.
        """

    def submit(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a job, or queue it.

        Raises:
            OutageError: If the job server does not respond.
        """

    def status(self, name: str) -> LaunchedJob | None:
        """Return the state of a job; None if the job is unknown.

        Raises:
            OutageError: If the job server does not respond.
        """

    def stop(self, name: str) -> None:
        """Stop a running or queued job; an unknown job is ignored.

        Raises:
            OutageError: If the job server does not respond.
        """
