"""The status of a batch, as its callers see it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from eagleray.core.job_state import JobState
from eagleray.database.tables import JobRow
from eagleray.sharded.commit import Commit
from eagleray.sharded.progress import Progress

__all__ = ["BatchStatus", "status_of"]


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """A batch at one moment.

    Attributes:
        id: Id of the batch.
        state: State of its job.
        created: Time of the request, UTC.
        model: Version that the request meant when it was accepted.
        output: Location of the output.
        request: Fields of the request.
        total: Number of images; None before they are listed.
        done: Number of images with a result.
        failed: Number of these that failed.
        images_per_second: Rate in the last minute, while the job runs.
        seconds_left: Expected time to the end at that rate.
        message: Sentence about the state; often empty.
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
        """Return the status as JSON values."""
        return {**dataclasses.asdict(self), "created": self.created.isoformat(timespec="seconds")}


def status_of(
    row: JobRow,
    state: JobState,
    progress: Progress | None,
    committed: Commit | None,
    *,
    message: str,
) -> BatchStatus:
    """Return the status of a batch.

    Args:
        row: Record of the batch.
        state: State of the batch.
        progress: Last progress report in the output; None without one.
        committed: Commit of the output; None before it.
        message: Sentence for the caller.
    """
    status = BatchStatus(
        id=row.id,
        state=state,
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
    runs = state == progress.state == JobState.RUNNING
    return dataclasses.replace(
        status,
        total=progress.num_rows,
        done=progress.num_done,
        failed=progress.num_failed,
        images_per_second=progress.images_per_second if runs else None,
        seconds_left=progress.seconds_left if runs else None,
    )
