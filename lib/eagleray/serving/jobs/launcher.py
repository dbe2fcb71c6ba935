"""The interface through which the service starts jobs; `serve/launcher.py` starts them on Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from eagleray.scheduling.assignment import Assignment

__all__ = ["Capacity", "Launcher"]


@dataclass(frozen=True, slots=True)
class Capacity:
    """The capacity for jobs.

    Attributes:
        cpus: Number of CPU cores of the cluster, used or not.
        gpus: Number of GPUs of the cluster, used or not.
    """

    cpus: float
    gpus: float


class Launcher(Protocol):
    """Starts the processes of jobs, which outlive the process that started them."""

    def capacity(self) -> Capacity:
        """Return the capacity for jobs.

        Raises:
            NotReadyError: If there is nothing that runs jobs.
        """

    def submit(self, assignment: Assignment, environment: Mapping[str, str]) -> None:
        """Start the process of a job, which waits for its turn.

        Raises:
            OutageError: If the job server does not respond.
        """
