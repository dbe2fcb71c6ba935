"""Decides which jobs run: by priority, then by fair share of their owners, then by age.

A job that waits may have a running one make room for it: one of lower priority, or a large one if
it is small itself. The decision is a pure function of the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

__all__ = ["MAX_PROCESSES", "SMALL_JOB", "Decision", "QueueEntry", "Usage", "decide"]

MAX_PROCESSES: Final = 16
"""Number of jobs that wait with a process on the cluster; those behind wait in the database."""

SMALL_JOB: Final = 5000
"""Number of images up to which a job is small."""

_HALF_LIFE: Final = timedelta(hours=12)  # of usage that counts against its owner
_CORES_OF_A_GPU: Final = 16.0  # machines with GPUs have about as many for each
_MIN_RUN: Final = timedelta(seconds=10)  # before a job makes room again
_MIN_RATIO: Final = 10  # of what is left of a large job to a small one


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A job that waits or runs.

    Attributes:
        job: Its id.
        owner: Who submitted it.
        priority: Jobs of a higher one run first.
        created: Time of its submission.
        runs: Whether it runs; otherwise it waits.
        has_process: Whether a living process waits for it or runs it.
        started: Time of its last admission; None before the first.
        images_left: Number of images without a result; None if it is unknown.
        can_yield: Whether it is able to make room now.
        yielded: Whether it has made room, and waits again.
        yields_to: The job that it makes room for; "" for none.
    """

    job: str
    owner: str
    priority: int
    created: datetime
    runs: bool = False
    has_process: bool = True
    started: datetime | None = None
    images_left: int | None = None
    can_yield: bool = False
    yielded: bool = False
    yields_to: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows for the jobs of a cluster.

    Attributes:
        admitted: Jobs that run from now on.
        waiting: All jobs that wait, in the order of the queue; admitted ones are the first.
        asked: For each running job that is to make room, the job that it makes room for. The
            value is "" where room is no longer needed.
        parked: Jobs that wait so far behind that they need no process yet.
        expected: Jobs for which others make room: they are admitted within seconds.
    """

    admitted: tuple[str, ...]
    waiting: tuple[str, ...]
    asked: Mapping[str, str]
    parked: frozenset[str]
    expected: frozenset[str] = frozenset()


@dataclass(slots=True)
class Usage:
    """What owners have used lately, in core-seconds; half of it is forgotten every twelve hours.

    Attributes:
        now: The present time.
    """

    now: datetime
    _seconds: dict[str, float] = field(default_factory=dict)

    def add(
        self, owner: str, when: datetime, *, core_seconds: float, gpu_seconds: float = 0.0
    ) -> None:
        """Add what a job has held until a time."""
        age = max(self.now - when, timedelta())
        weighted = core_seconds + _CORES_OF_A_GPU * gpu_seconds
        decayed = weighted * 0.5 ** (age / _HALF_LIFE)
        self._seconds[owner] = self._seconds.get(owner, 0.0) + decayed

    def of(self, owner: str) -> float:
        """Return the core-seconds of an owner."""
        return self._seconds.get(owner, 0.0)


def decide(
    entries: Iterable[QueueEntry], usage: Usage, max_running: int, now: datetime
) -> Decision:
    """Decide which jobs are admitted, and which are to make room.

    Args:
        entries: The jobs of a cluster that wait or run.
        usage: What their owners have used lately.
        max_running: Number of jobs that run at a time.
        now: The present time.
    """
    entries = list(entries)
    running = [entry for entry in entries if entry.runs]
    waiting = _in_order([entry for entry in entries if not entry.runs], running, usage)
    ready = [entry for entry in waiting if entry.has_process and not _stands_back(entry, waiting)]
    admitted = ready[: max(0, max_running - len(running))]
    left = ready[len(admitted) :]
    started = {entry.job for entry in admitted}
    behind = [entry for entry in waiting if not entry.yielded and entry.job not in started]
    asked = _ask(left, running, now)
    expected = {entry.yields_to for entry in entries if entry.job not in asked}
    return Decision(
        admitted=tuple(entry.job for entry in admitted),
        waiting=tuple(entry.job for entry in [*admitted, *_without(waiting, started)]),
        asked=asked,
        parked=frozenset(entry.job for entry in behind[MAX_PROCESSES:]),
        expected=frozenset({*expected, *asked.values()} - {"", *started}),
    )


def _in_order(
    waiting: Sequence[QueueEntry], running: Sequence[QueueEntry], usage: Usage
) -> list[QueueEntry]:
    """Return the queue; first are the jobs for which others make room."""
    expected = {entry.yields_to for entry in (*waiting, *running)}
    return sorted(
        waiting,
        key=lambda entry: (
            -entry.priority,
            entry.job not in expected,
            usage.of(entry.owner),
            entry.created,
            entry.job,
        ),
    )


def _stands_back(entry: QueueEntry, waiting: Iterable[QueueEntry]) -> bool:
    """Whether a job has made room for another one that has not started yet."""
    return bool(entry.yields_to) and any(
        other.job == entry.yields_to and other.has_process for other in waiting
    )


def _without(entries: Iterable[QueueEntry], jobs: set[str]) -> list[QueueEntry]:
    return [entry for entry in entries if entry.job not in jobs]


def _ask(
    left: Sequence[QueueEntry], running: Sequence[QueueEntry], now: datetime
) -> dict[str, str]:
    """Return which running jobs are to make room for which of those that are left waiting."""
    waiting = {entry.job for entry in left}
    asked = {
        entry.job: "" for entry in running if entry.yields_to and entry.yields_to not in waiting
    }
    served = {entry.yields_to for entry in running}
    free = [entry for entry in running if entry.can_yield and not entry.yields_to]
    free = [entry for entry in free if entry.started is None or now - entry.started >= _MIN_RUN]
    for entry in left:
        if entry.job in served or entry.yielded:
            continue
        able = [other for other in free if _may_ask(entry, other)]
        if able:
            chosen = min(able, key=lambda other: (other.priority, -(other.images_left or 0)))
            asked[chosen.job] = entry.job
            free.remove(chosen)
    return asked


def _may_ask(entry: QueueEntry, running: QueueEntry) -> bool:
    """Whether a waiting job should not wait for a running one to end."""
    if running.priority != entry.priority:
        return running.priority < entry.priority
    small, large = entry.images_left, running.images_left
    if small is None or large is None or small > SMALL_JOB:
        return False
    return large >= _MIN_RATIO * small
