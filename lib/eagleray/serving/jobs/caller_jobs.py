"""Submits, finds, follows, cancels and retries the jobs of callers.

A job is a record in the organisation's database and a process on the cluster, so every replica and
every later service knows it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from eagleray.core.errors import InputError, OutageError, UnknownNameError
from eagleray.core.job_state import ACTIVE_STATES, RECOVERABLE_STATES, JobState
from eagleray.core.spec import Names, names_of
from eagleray.database.tables import JobRow
from eagleray.registry.registry import Registry
from eagleray.scheduling.logs import LogLine, LogReader
from eagleray.scheduling.records import new_job
from eagleray.serving.batches.path_policy import BatchPathPolicy
from eagleray.serving.callers.applications import Applications
from eagleray.serving.callers.roles import Roles
from eagleray.serving.config import ServiceConfig
from eagleray.serving.jobs.body import JobBody
from eagleray.serving.jobs.locations import hiding_locations, require_there
from eagleray.serving.jobs.requests import JobPlan, plan_job
from eagleray.serving.jobs.rules import SPECS
from eagleray.serving.jobs.starter import JobStarter
from eagleray.serving.jobs.versions import resolve_version
from eagleray.serving.problems import ForbiddenError, NotFinishedError, hide_locations
from eagleray.serving.versions.routing import Snapshot

__all__ = ["CallerJobs"]

log = logging.getLogger(__name__)

_START = re.compile(r"(\d{1,9})\.(\d{1,9})")
_MAX_LINES = 1000  # of a response; a file of a log is never divided


class CallerJobs:
    """The jobs of callers.

    The methods block on storage, database and the launcher; an event loop calls them in a thread.

    Args:
        registry: Registry of the models.
        config: Configuration of the service.
        starter: Starts the jobs.
    """

    def __init__(self, registry: Registry, config: ServiceConfig, starter: JobStarter) -> None:
        self._registry, self._config, self._starter = registry, config, starter

    def submit(self, body: JobBody, application: str, snapshot: Snapshot) -> dict[str, Any]:
        """Start a job, or return the one of the same request id.

        Raises:
            ForbiddenError: If it names what this caller may not use, or does what it may not.
            UserError: If a field is invalid, or an input or a model is not there.
            FullError: If the application has too many jobs already.
            NotReadyError: If nothing runs jobs, or no resources are left for them.
            OutageError: If the registry, the database or the job server does not respond.
        """
        job = _job_id(body, application)
        request = body.model_dump(mode="json", exclude={"request_id"}, exclude_unset=True)
        known = self._starter.find(job, application)
        if known is not None:
            if known.request != request:
                raise InputError(
                    f"request_id {body.request_id} is that of another job; draw a new one."
                )
            return self._as_json(known)
        with hiding_locations(_locations(request)):
            plan = self._plan(body, application, snapshot)
            _require_inputs_there(body.command, plan)
            with self._starter.database.lock("jobs"):
                self._starter.require_room(application)
                row = self._starter.start(
                    new_job(
                        id=job,
                        program=body.command,
                        spec=plan.spec,
                        words=list(plan.words),
                        request=request,
                        model=plan.model,
                        output=plan.output,
                        owner=application,
                        application=application,
                        priority=body.priority,
                        retries=body.retries,
                    )
                )
        return self._as_json(row)

    def _plan(self, body: JobBody, application: str, snapshot: Snapshot) -> JobPlan:
        policy = BatchPathPolicy(self._config, application)
        policy.require_any()
        highest = Applications(self._starter.database, actor="").max_priority(application)
        if body.priority > highest:
            raise ForbiddenError(
                f"Jobs of this application have a priority of at most {highest}; an operator "
                f"raises it with `eagleray apps priority {application or 'APPLICATION'} NUMBER`."
            )

        def resolve(reference: str) -> str:
            return resolve_version(reference, application, snapshot, self._registry).reference

        max_workers = self._starter.max_workers()
        plan = plan_job(body, self._config, policy, resolve, max_workers=max_workers)
        Roles(self._starter.database).require(application, plan.roles)
        return plan

    def list(self, application: str, *, limit: int) -> list[dict[str, Any]]:
        """Return an application's jobs, newest first."""
        rows = self._starter.records.recent(JobRow.application == application, limit=limit)
        positions = self._positions(rows)
        return [_as_json(row, positions.get(row.id)) for row in rows]

    def status(self, job: str, application: str) -> dict[str, Any]:
        """Return the status of a job.

        Raises:
            UnknownNameError: If the application has no job of this id.
        """
        return self._as_json(self._row(job, application))

    def logs(self, job: str, application: str, *, start: str) -> dict[str, Any]:
        """Return what a job has printed, from a position on, up to about a thousand lines.

        Raises:
            UnknownNameError: If the application has no job of this id.
            InputError: If the position is none.
            OutageError: If the storage of the log does not respond.
        """
        position = _START.fullmatch(start)
        if position is None:
            raise InputError(f"start is {start!r}; it is the `next` of an earlier response.")
        row = self._row(job, application)
        reader = LogReader(row, epoch=int(position[1]), number=int(position[2]))
        shown = _locations(row.request)
        lines: list[LogLine] = []
        while len(lines) < _MAX_LINES and (file := _read_file(reader, row)) is not None:
            lines += file
        streams = {True: "stdout", False: "stderr"}
        printed = [
            {"stream": streams[line.is_output], "text": hide_locations(line.text, shown)}
            for line in lines
        ]
        epoch, number = reader.position
        ended = _is_over(row) and not lines
        return {"lines": printed, "next": f"{epoch}.{number}", "ended": ended}

    def cancel(self, job: str, application: str) -> dict[str, Any]:
        """Cancel a job; what is finished is kept. A job that has ended stays as it is.

        Raises:
            UnknownNameError: If the application has no job of this id.
        """
        row = self._row(job, application)
        if row.state in RECOVERABLE_STATES:
            row = self._starter.records.cancel(row.id)
        return self._as_json(row)

    def retry(self, job: str, application: str, snapshot: Snapshot) -> dict[str, Any]:
        """Start a job that has ended once more, if the caller may still do what it does.

        Raises:
            UnknownNameError: If the application has no job of this id.
            NotFinishedError: If the job has not ended.
            ForbiddenError: If the caller may no longer use what it names.
            FullError: If the application has too many jobs already.
            OutageError: If the database or the job server does not respond.
        """
        row = self._row(job, application)
        if row.state in ACTIVE_STATES and self._starter.records.has_process(row):
            raise NotFinishedError(f"Job {job} is {row.state}; cancel it, or wait for its end.")
        body = _body_of(row)
        if body is None:
            raise InputError(f"{job} is a batch; post its body to /v1/batches again to resume it.")
        with hiding_locations(_locations(row.request)):
            plan = self._plan(body, application, snapshot)
            with self._starter.database.lock("jobs"):
                self._starter.require_room(application)
                return self._as_json(self._starter.start_again(row, plan.spec))

    def _row(self, job: str, application: str) -> JobRow:
        row = self._starter.find(job, application)
        if row is None:
            raise UnknownNameError("job", job, [], hint="GET /v1/jobs lists yours.")
        return row

    def _positions(self, rows: Sequence[JobRow]) -> Mapping[str, int]:
        waiting = any(row.state == JobState.QUEUED for row in rows)
        return self._starter.records.positions() if waiting else {}

    def _as_json(self, row: JobRow) -> dict[str, Any]:
        return _as_json(row, self._positions([row]).get(row.id))


def _is_over(row: JobRow) -> bool:
    """Whether a job changes no more by itself; one that is lost may be submitted again."""
    return row.state not in ACTIVE_STATES and not (row.state == JobState.LOST and row.retries_left)


def _as_json(row: JobRow, position: int | None) -> dict[str, Any]:
    request = {name: value for name, value in row.request.items() if name != "command"}
    return {
        "id": row.id,
        "command": row.program,
        "state": row.state,
        "created": row.created.isoformat(timespec="seconds"),
        "application": row.application or "",
        "priority": row.priority,
        "position": position,
        "output": row.output,
        "request": request if "spec" in request else {"spec": request},
        "attempt": row.epoch,
        "total": row.num_total,
        "done": row.num_done,
        "failed": row.num_failed,
        "exit_code": row.exit_code,
        "message": hide_locations(
            "It is asked to end." if row.cancel_requested else row.message,
            _locations(row.request),
        ),
    }


def _job_id(body: JobBody, application: str) -> str:
    """Return the id of a request's job, which nobody else's request has."""
    digest = hashlib.sha256(f"{application}\n{body.command}\n{body.request_id}".encode())
    return f"{body.command}-{digest.hexdigest()[:16]}"


def _body_of(row: JobRow) -> JobBody | None:
    """Return the request of a job; None if it is a batch, which has another form."""
    if "spec" not in row.request:
        return None
    return JobBody.model_validate({**row.request, "request_id": row.id})


def _locations(request: Mapping[str, Any]) -> list[str]:
    """Return all texts of a request, among them every location that the caller has named."""
    found: list[str] = []
    waiting: list[Any] = [request]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and value:
            found.append(value)
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return found


def _require_inputs_there(command: str, plan: JobPlan) -> None:
    """Check early what the job itself would check, as far as that is cheap.

    Raises:
        InputError: If an input is missing.
    """
    fields = plan.spec.get("fixed", {}) if command == "tune" else plan.spec
    for name, value in fields.items():
        if names_of(SPECS[command].model_fields[name].json_schema_extra) is Names.INPUT:
            for location in [value] if isinstance(value, str) else value:
                if name != "kpi":
                    require_there(location)


def _read_file(reader: LogReader, row: JobRow) -> list[LogLine] | None:
    """Return the lines of the next file of a log; None if there is none yet.

    Raises:
        OutageError: If the storage does not respond.
    """
    try:
        return reader.read_file(row.epoch)
    except OSError as error:
        raise OutageError(
            f"The log of job {row.id} cannot be read: {error}.",
            public="The log of this job is not available now; try again later.",
        ) from error
