"""How far a batch is, as its callers see it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from eagleray.core.job_state import JobState
from eagleray.database.tables import BatchRow
from eagleray.sharded.commit import Commit
from eagleray.sharded.progress import Progress

__all__ = ["BatchStatus", "status_of"]


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """A batch at one moment.

    Attributes:
        id: Its own.
        state: Where it is.
        created: UTC.
        model: The version that was meant when it was accepted.
        output: Location.
        request: As it was asked for.
        total: Images; None before they are listed.
        done: Images with a result.
        failed: Of these.
        images_per_second: In the last minute, while it runs.
        seconds_left: At that rate.
        message: Why it is as it is, where there is something to say.
    """

    id: str
    state: JobState
    created: datetime
    model: str
    output: str
    request: dict[str, Any]
    total: int | None = None
    done: int = 0
    failed: int = 0
    images_per_second: float | None = None
    seconds_left: float | None = None
    message: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return its members."""
        return {**dataclasses.asdict(self), "created": self.created.isoformat(timespec="seconds")}


def status_of(
    row: BatchRow, progress: Progress | None, committed: Commit | None, *, message: str
) -> BatchStatus:
    """Return how far a batch is.

    Args:
        row: With its state.
        progress: The last sign of life in its output.
        committed: Its results.
        message: For the caller.
    """
    status = BatchStatus(
        id=row.id,
        state=JobState(row.state),
        created=row.created,
        model=row.model,
        output=row.output,
        request=row.request,
        message=message,
    )
    if committed is not None:
        rows, failed = committed.num_rows, committed.num_failed
        return dataclasses.replace(status, total=rows, done=rows, failed=failed)
    if progress is None:
        return status
    runs = row.state == progress.state == JobState.RUNNING
    return dataclasses.replace(
        status,
        total=progress.num_rows,
        done=progress.num_done,
        failed=progress.num_failed,
        images_per_second=progress.images_per_second if runs else None,
        seconds_left=progress.seconds_left if runs else None,
    )
