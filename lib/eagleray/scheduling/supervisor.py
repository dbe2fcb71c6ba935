"""Submits lost jobs again, and those whose turn in the queue comes near.

Any number of supervisors may run, on any machines: the one that changes a job's record first
submits it. A job that is lost takes one of its retries; one that only waits takes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from eagleray.core.errors import InputError, OutageError, UserError
from eagleray.core.job_state import JobState
from eagleray.database.tables import JobRow
from eagleray.scheduling.records import JobRecords

__all__ = ["AttemptServer", "supervise"]


class AttemptServer(Protocol):
    """Runs attempts of jobs on a cluster; all methods raise `OutageError` if it does not answer."""

    def start_attempt(self, row: JobRow) -> None:
        """Submit a job under the name of its submission.

        Raises:
            UserError: If the cluster refuses it.
        """

    def failed_start(self, row: JobRow) -> str | None:
        """Return why the process of a submission ended; None if it runs, waits or is unknown."""

    def stop_attempt(self, row: JobRow) -> None:
        """Stop what is left of a submission, if anything is."""


def supervise(records: JobRecords, connect: Callable[[], AttemptServer]) -> Iterator[str]:
    """Submit every job again that is due, and yield a sentence for each.

    Args:
        records: The records of jobs.
        connect: Returns the cluster, which answers.

    Raises:
        OutageError: If the database or the cluster does not answer; the jobs stay as they are.
    """
    due = records.without_process()
    if not due:
        return
    server = connect()
    for row in due:
        if row.state == JobState.QUEUED and row.heartbeat is None:
            reason = server.failed_start(row)
            if reason is not None:
                if records.fail_start(row, reason):
                    yield f"Job {row.id} has failed: its process did not start: {reason}"
                continue
        try:
            again = records.submit_again(row, takes_retry=row.state == JobState.LOST)
        except InputError:  # a process has it by now
            continue
        if again is None:  # another supervisor was first
            continue
        if row.state == JobState.LOST:
            server.stop_attempt(row)
        yield _start(records, server, row, again)


def _start(records: JobRecords, server: AttemptServer, row: JobRow, again: JobRow) -> str:
    if row.state == JobState.LOST:
        left = f"{again.retries_left} of {again.retries} retries are left"
        what = f"Job {row.id} was lost ({row.message.rstrip('.')})"
    else:
        left, what = "it waits in the queue", f"Job {row.id} waits and has no process"
    try:
        server.start_attempt(again)
    except OutageError:
        raise
    except UserError as error:
        records.fail_start(again, str(error))
        return f"{what}; the cluster refuses it: {error}"
    return f"{what}; it is submitted again as {again.submission}, {left}."
