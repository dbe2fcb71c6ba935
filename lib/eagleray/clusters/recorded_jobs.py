"""The jobs of a cluster through their records: also when its head is gone.

This machine reaches the organisation's database and the storage of the logs. The job server is
needed to submit only, and to see why a process did not start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from eagleray.clusters.ray_jobs import RayJobs
from eagleray.clusters.remote_jobs import LogText, RemoteCommand, RemoteJob, command_text
from eagleray.core.errors import OutageError, UserError
from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings
from eagleray.database.store import OpenDatabase
from eagleray.database.tables import JobRow
from eagleray.scheduling.logs import LogReader
from eagleray.scheduling.records import JobRecords, new_job

__all__ = ["RecordedJobs"]

_SECONDS: Final = 1.0  # between two looks at a job that is followed
_PATIENCE_SECONDS: Final = 60.0
_MAX_JOBS: Final = 1000


class RecordedJobs:
    """The jobs in the organisation's database; implements `RemoteJobs`.

    Args:
        database: The database.
        settings: The settings of this machine.
        server: Returns the jobs of the cluster's job server.
    """

    def __init__(
        self, database: OpenDatabase, settings: Settings, server: Callable[[], RayJobs]
    ) -> None:
        self._database, self._settings = database, settings
        self._records = JobRecords(database, settings)
        self._server = server

    def facts(self) -> dict[str, Any]:
        """Return nothing: the database has no version of its own to compare."""
        return {}

    def submit(self, command: RemoteCommand, *, name: str, user: str) -> str:
        """Submit a command with its small local inputs, and record it."""
        server = self._server()
        assignment = server.prepare(command, name=name, user=user)
        identity = self._database.read_identity()
        server.start(assignment.model_copy(update={"database": identity}))
        self._records.add(new_job(id=name, submission=name, **assignment.record))
        return name

    def jobs(self) -> list[RemoteJob]:
        """Return the jobs, newest first."""
        positions = self._records.positions()
        rows = self._records.recent(limit=_MAX_JOBS)
        return [self._as_remote(row, positions.get(row.id)) for row in rows]

    def job(self, name: str) -> RemoteJob:
        """Return a job, by its name or the first characters of it."""
        row = self._records.get(name)
        position = self._records.positions().get(row.id) if row.state == JobState.QUEUED else None
        return self._as_remote(row, position)

    def logs(self, name: str) -> Iterator[LogText]:
        """Yield what all attempts of a job have printed so far."""
        row = self._records.get(name)
        try:
            yield from _read(LogReader(row), row)
        except OutageError as fault:
            yield from self._instead(fault).logs(row.id)

    def follow(self, name: str) -> Iterator[LogText]:
        """Yield what all attempts of a job print, until it has ended."""
        answered, said, reader = time.monotonic(), "", None
        while True:
            try:
                row = self._records.get(name)
                answered = time.monotonic()
            except OutageError:
                if time.monotonic() - answered > _PATIENCE_SECONDS:
                    raise
                time.sleep(_SECONDS)
                continue
            reader = reader or (LogReader(row) if row.logs else None)
            if reader is not None:  # after the record: what is written before the end is read
                try:
                    yield from _read(reader, row)
                except OutageError as fault:
                    yield from self._instead(fault).follow(row.id)
                    return
            note = self._note(row)
            if note and note != said:
                yield LogText(f"{note}\n", is_output=False)
            said = note
            if _is_over(row):
                return
            if row.heartbeat is None:
                yield from self._failed_start(row)
            time.sleep(_SECONDS)

    def _instead(self, fault: OutageError) -> RayJobs:
        """Return the job server, which has the log of the last attempt.

        Raises:
            OutageError: The fault of the storage, if the server does not answer either.
        """
        try:
            return self._server()
        except UserError:
            raise fault from None

    def stop(self, name: str) -> None:
        """Stop a job; its process sees it within seconds."""
        self._records.cancel(name)

    def retry(self, job: RemoteJob, *, name: str) -> str:  # noqa: ARG002 - it keeps its own
        """Submit a job that has ended once more; it keeps its name."""
        row, server = self._records.get(job.name), self._server()
        again = self._records.submit_again(row)
        if again is None:
            raise UserError(f"Job {row.id} has changed meanwhile; look at it again.")
        server.start_attempt(again)
        return again.id

    def _note(self, row: JobRow) -> str:
        """Return what is said of a job that prints nothing now."""
        if row.state == JobState.LOST and not _is_over(row):
            return f"Job {row.id} is lost; `eagleray supervise` submits it again. {row.message}"
        if row.state == JobState.QUEUED and row.heartbeat is not None:
            position = self._records.positions().get(row.id)
            waits = row.message or f"Job {row.id} waits for its turn."
            return f"{waits} It is number {position} in the queue." if position else waits
        return ""

    def _failed_start(self, row: JobRow) -> list[LogText]:
        """Return what is known of a process that ended before it claimed its job."""
        try:
            server = self._server()
            reason = server.failed_start(row)
            if reason is None or not self._records.fail_start(row, reason):
                return []
            return list(server.logs(row.id))
        except UserError:  # the cluster does not answer, or is not named
            return []

    def _as_remote(self, row: JobRow, position: int | None) -> RemoteJob:
        return RemoteJob(
            name=row.id,
            state=JobState(row.state),
            created=row.created.isoformat(timespec="seconds"),
            user=row.owner,
            command=command_text(row.program, row.words),
            message=row.message,
            exit_code=row.exit_code,
            details=_details(row, position, self._settings),
        )


def _is_over(row: JobRow) -> bool:
    waits = row.state == JobState.LOST and row.retries_left > 0
    return JobState(row.state).has_ended and not waits


def _read(reader: LogReader, row: JobRow) -> Iterator[LogText]:
    """Yield what was not read yet.

    Raises:
        OutageError: If the storage does not answer.
    """
    try:
        for line in reader.read(row.epoch):
            yield LogText(line.text, line.is_output)
    except OSError as error:
        raise OutageError(
            f"The log of job {row.id} cannot be read from {row.logs} ({error.strerror or error}); "
            "check the credentials of this machine."
        ) from None


def _details(row: JobRow, position: int | None, settings: Settings) -> dict[str, Any]:
    prices = (settings.core_hour_price, settings.gpu_hour_price)
    price = sum(
        (per_hour or 0.0) * seconds / 3600
        for per_hour, seconds in zip(prices, (row.core_seconds, row.gpu_seconds), strict=True)
    )
    return {
        "position": position,
        "priority": row.priority,
        "attempt": row.epoch,
        "retries_left": row.retries_left,
        "stage": row.stage,
        "done": row.num_done,
        "failed": row.num_failed,
        "total": row.num_total,
        "core_hours": round(row.core_seconds / 3600, 3),
        "gpu_hours": round(row.gpu_seconds / 3600, 3),
        "price": round(price, 2) if any(each is not None for each in prices) else None,
        "output": row.output,
        "logs": row.logs,
        "version": row.version,
        "started": row.started and row.started.isoformat(timespec="seconds"),
        "ended": row.ended and row.ended.isoformat(timespec="seconds"),
    }
