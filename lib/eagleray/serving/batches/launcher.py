"""What the service needs of whatever runs its batch jobs; `serve/launcher.py` has Ray do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from eagleray.core.job_state import JobState

__all__ = ["Capacity", "Launched", "Launcher"]


@dataclass(frozen=True, slots=True)
class Launched:
    """A run as whoever runs it knows it.

    Attributes:
        state: Where it is.
        message: Its last words, where it failed.
    """

    state: JobState
    message: str = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is for jobs.

    Attributes:
        cpus: Of the cluster, whoever holds them now.
        gpus: Of the cluster, whoever holds them now.
        waits: Whether a run waits until others have ended, where it must.
    """

    cpus: float
    gpus: float
    waits: bool


class Launcher(Protocol):
    """Runs commands elsewhere; they go on when the process that asked for them ends."""

    def capacity(self) -> Capacity:
        """Say what there is for jobs.

        Raises:
            NotReadyError: Nothing here runs jobs.
        """

    def submit(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a run, or have it wait for its turn.

        Raises:
            OutageError: Whatever runs jobs does not answer.
        """

    def status(self, name: str) -> Launched | None:
        """Return where a run is; None where it is not known, or not any more.

        Raises:
            OutageError: Whatever runs jobs does not answer.
        """

    def stop(self, name: str) -> None:
        """End a run, or what waits to be one; nothing happens where it is not known.

        Raises:
            OutageError: Whatever runs jobs does not answer.
        """
