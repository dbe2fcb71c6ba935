"""The jobs that were started from this home, and the status of each.

A record holds only the location of a job's output. Everything else is read from there, so the
status is right whichever machine ran the job last.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from eagleray.core.errors import EaglerayError, InputError, UnknownNameError
from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.sharded.commit import read_commit
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.plan import Plan, read_plan
from eagleray.sharded.progress import Progress, read_progress

__all__ = [
    "AnyPlan",
    "JobStatus",
    "cancel_job",
    "find_job",
    "list_jobs",
    "pause_job",
    "record_job",
    "resume_job",
]

_MAX_SECONDS_BETWEEN_UPDATES = 60.0
_S3_OF_THIS_PROCESS = storage.S3Options()


class AnyPlan(Plan[dict[str, Any]]):
    """A plan of any kind of job, with its further fields."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = "predict"  # which the version before left out


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    job_id: str
    created: str
    output: str
    s3: storage.S3Options = _S3_OF_THIS_PROCESS


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job as its output shows it.

    Attributes:
        job_id: Identifier of the job.
        output: Location of its output.
        created: ISO time of its plan, UTC.
        state: State of the job; `unknown` if its output is gone, does not respond, or is of an
            incompatible version.
        num_rows: Number of inputs.
        num_done: Number of inputs with a result.
        num_failed: Number of inputs that failed.
        reasons: Number of failures for each reason code, the most frequent first; known once
            committed.
        message: Explanation of the state, where there is one.
        plan: Plan of the job; None if the output is gone or unreadable.
        progress: Last published progress, if any.
        s3: Options that reach its output on S3.
    """

    job_id: str
    output: str
    created: str
    state: JobState
    s3: storage.S3Options
    num_rows: int = 0
    num_done: int = 0
    num_failed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    message: str = ""
    plan: AnyPlan | None = None
    progress: Progress | None = None


def record_job(
    settings: Settings, plan: Plan[Any], output: str, s3: storage.S3Options = _S3_OF_THIS_PROCESS
) -> None:
    """Record a job and how its output is reached; a second record replaces the first."""
    record = _Record(job_id=plan.job_id, created=plan.created, output=output, s3=s3)
    target = _folder(settings) / f"{plan.job_id}.json"
    storage.put_atomic(str(target), record.model_dump_json().encode())


def _folder(settings: Settings) -> Path:
    return settings.home_folder / "jobs"


def list_jobs(settings: Settings) -> list[JobStatus]:
    """Return every job of this home, newest first."""
    records = sorted(_records(settings), key=lambda record: record.created, reverse=True)
    return [_status(record) for record in records]


def _records(settings: Settings) -> Iterator[_Record]:
    for file in sorted(_folder(settings).glob("*.json")):
        try:
            yield _Record.model_validate_json(file.read_bytes())
        except ValidationError:
            continue  # a file of others


def find_job(settings: Settings, name: str) -> JobStatus:
    """Return the job that an identifier, the beginning of one, or an output names.

    Raises:
        UnknownNameError: If there is none.
        InputError: If there are several.
    """
    records = list(_records(settings))
    output = storage.absolute(name).rstrip("/")
    found = [r for r in records if r.output.rstrip("/") == output]
    found = sorted(found, key=lambda record: record.created)[-1:]  # earlier ones are gone
    found = found or [r for r in records if r.job_id.startswith(name)]
    if len(found) > 1:
        raise InputError(
            f"{name!r} begins the names of {len(found)} jobs: "
            f"{', '.join(record.job_id for record in found)}; write more of it."
        )
    if found:
        return _status(found[0])
    plan = read_plan(OutputLayout(name), AnyPlan) if storage.is_folder(name) else None
    if plan is not None:  # a job of another home, named by its output
        return _status(_Record(job_id=plan.job_id, created=plan.created, output=output))
    raise UnknownNameError(
        "job", name, [record.job_id for record in records], hint="`eagleray jobs list` shows them."
    )


def cancel_job(status: JobStatus) -> None:
    """Ask a running job to stop; its results so far are kept.

    Raises:
        InputError: If it is not running.
    """
    _require_alive(status, "cancelled")
    storage.put_atomic(OutputLayout(status.output).cancel, b"")


def pause_job(status: JobStatus) -> None:
    """Ask a running job to give its workers to others until it is resumed.

    Raises:
        InputError: If it is not running.
    """
    _require_alive(status, "paused")
    storage.put_atomic(OutputLayout(status.output).pause, b"")


def resume_job(status: JobStatus) -> None:
    """Let a paused job go on.

    Raises:
        InputError: If it is not running.
    """
    _require_alive(status, "resumed")
    storage.delete(OutputLayout(status.output).pause)


def _require_alive(status: JobStatus, change: str) -> None:
    if status.state.has_ended:
        raise InputError(
            f"Job {status.job_id} is {status.state}; only a running one is {change}. Its command "
            "starts it again."
        )


def _status(record: _Record) -> JobStatus:
    layout = OutputLayout(record.output)
    try:
        with storage.using_s3(record.s3):
            plan, progress = read_plan(layout, AnyPlan), read_progress(layout)
            committed = read_commit(layout)
    except (EaglerayError, OSError) as error:
        return _status_unknown(record, str(error))
    if plan is None or plan.job_id != record.job_id:
        return _status_unknown(record, "The output is gone.")
    num_done = progress.num_done if progress else 0
    num_failed = progress.num_failed if progress else 0
    if committed:
        num_done, num_failed = committed.num_rows, committed.num_failed
    return JobStatus(
        job_id=record.job_id,
        output=record.output,
        created=record.created,
        state=JobState.SUCCEEDED if committed else _state(progress),
        num_rows=plan.num_rows,
        num_done=num_done,
        num_failed=num_failed,
        reasons=dict(committed.reasons.most_common()) if committed else {},
        message=progress.message if progress else "",
        plan=plan,
        progress=progress,
        s3=record.s3,
    )


def _status_unknown(record: _Record, message: str) -> JobStatus:
    return JobStatus(
        job_id=record.job_id,
        output=record.output,
        created=record.created,
        state=JobState.UNKNOWN,
        s3=record.s3,
        message=message,
    )


def _state(progress: Progress | None) -> JobState:
    if progress is None:
        return JobState.STOPPED
    if not progress.state.has_ended and not _is_alive(progress):
        return JobState.STOPPED
    return progress.state


def _is_alive(progress: Progress) -> bool:
    """Whether a job's driver still runs, as far as this machine can tell."""
    if progress.host == socket.gethostname():
        try:
            os.kill(progress.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    return time.time() - progress.updated < _MAX_SECONDS_BETWEEN_UPDATES
