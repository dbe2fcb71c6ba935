"""The states of a job: one vocabulary for progress files, the job history, HTTP, client and CLI."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = ["ACTIVE_STATES", "RECOVERABLE_STATES", "JobState"]


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    YIELDED = "yielded"
    """The job has given its workers to others and waits until it may go on."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    """The job was interrupted, or its process is gone; the same command resumes it."""
    LOST = "lost"
    """The process that ran a submitted job has sent no sign of life for the time of its lease."""
    UNKNOWN = "unknown"
    """The output of the job is gone or does not answer; the message says which."""

    @property
    def has_ended(self) -> bool:
        """Whether the job changes no more unless it is started again."""
        return self not in (JobState.QUEUED, JobState.RUNNING, JobState.YIELDED)


ACTIVE_STATES: Final = frozenset({JobState.QUEUED.value, JobState.RUNNING.value})
"""States of the record of a submitted job that waits or runs."""

RECOVERABLE_STATES: Final = ACTIVE_STATES | {JobState.LOST.value}
"""States of the record of a submitted job that its process, or another attempt, may continue."""
