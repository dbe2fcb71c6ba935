"""Starts, finds, watches and cancels the batch jobs of callers, and returns their results.

A batch is a row in the organisation's database, a job, and an output. The row has the caller and
the request; progress and results are read from the output. So a service that is restarted knows all
batches, and every replica knows the same ones.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from eagleray.batch.plan import PredictPlan
from eagleray.batch.spec import PredictSpec
from eagleray.core.errors import InputError, OutputExistsError, UnknownNameError
from eagleray.core.job_state import JobState
from eagleray.database.tables import JobRow
from eagleray.io import storage
from eagleray.registry.registry import Registry
from eagleray.scheduling.assignment import SPEC_VARIABLE
from eagleray.scheduling.records import new_job
from eagleray.serving.batches.path_policy import BatchPathPolicy
from eagleray.serving.batches.results import describe_results, json_lines
from eagleray.serving.batches.spec import BatchBody
from eagleray.serving.batches.status import BatchStatus, status_of
from eagleray.serving.config import ServiceConfig
from eagleray.serving.jobs.locations import NOT_AVAILABLE, hiding_locations, require_there
from eagleray.serving.jobs.starter import JobStarter, bounded_spec
from eagleray.serving.jobs.versions import resolve_version
from eagleray.serving.problems import NotFinishedError, hide_locations
from eagleray.serving.versions.routing import Snapshot
from eagleray.sharded.commit import Commit, read_commit
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.plan import new_id, read_plan, require_same_work
from eagleray.sharded.prepare import require_free, require_writable
from eagleray.sharded.progress import read_progress

__all__ = ["BatchJobs"]

log = logging.getLogger(__name__)

_ENDED = frozenset(state.value for state in JobState if state.has_ended)
_OF_BATCHES = JobRow.id.not_like("%-%")  # ids of other jobs begin with their command


class BatchJobs:
    """The batch jobs of callers.

    The methods block on storage, database and the launcher; an event loop calls them in a thread.

    Args:
        registry: Registry of the models.
        config: Configuration of the service.
        starter: Starts the jobs.
    """

    def __init__(self, registry: Registry, config: ServiceConfig, starter: JobStarter) -> None:
        self._registry, self._config, self._starter = registry, config, starter

    # --- start ---

    def start(self, body: BatchBody, application: str, snapshot: Snapshot) -> BatchStatus:
        """Start a batch, or resume the one of the same request.

        Raises:
            ForbiddenError: If it would read or write locations that callers may not.
            UserError: If an input is missing, the model is unknown, or the output is of other work.
            FullError: If the application has too many batches already.
            NotReadyError: If nothing runs jobs, or no resources are left for them.
            OutageError: If the registry, the database or the output does not respond.
        """
        with hiding_locations(body.locations):
            return self._start(body, application, snapshot)

    def _start(self, body: BatchBody, application: str, snapshot: Snapshot) -> BatchStatus:
        policy = BatchPathPolicy(self._config, application)
        policy.require_any()
        policy.require_output(body.output)
        policy.require_inputs([*body.inputs, *body.earlier])
        with self._starter.database.lock("jobs"):
            row = self._same(body, application)
            if row is not None:
                status = self._status(row)
                goes_on = status.state not in _ENDED and self._starter.records.has_process(row)
                if goes_on or status.state == JobState.SUCCEEDED:
                    return status
            self._starter.require_room(application)
            if row is None:
                row = self._starter.start(self._new_row(body, application, snapshot, policy))
            else:
                spec = self._spec(body, row.model, policy)
                row = self._starter.start_again(row, bounded_spec(spec))
        return self._status(row)

    def _same(self, body: BatchBody, application: str) -> JobRow | None:
        """Return the batch that has this output, if it is of the same request.

        Raises:
            OutputExistsError: If it is of another request.
        """
        found = self._starter.records.recent(JobRow.output == body.output, limit=1)
        row = found[0] if found else None
        if row is None or (row.application == application and row.request == _as_stored(body)):
            return row
        if row.state not in _ENDED or read_plan(OutputLayout(body.output), PredictPlan) is not None:
            raise OutputExistsError(
                f"Output {body.output} belongs to another batch; send the same request, or "
                "name another folder."
            )
        return None

    def _new_row(
        self, body: BatchBody, application: str, snapshot: Snapshot, policy: BatchPathPolicy
    ) -> JobRow:
        """Check early what the job itself would check, as far as that is cheap."""
        version = resolve_version(body.model, application, snapshot, self._registry)
        for location in body.inputs:
            require_there(location)
        job = self._spec(body, version.reference, policy)
        layout = OutputLayout(body.output)
        plan = read_plan(layout, PredictPlan)
        if plan is None:
            require_free(layout)
            require_writable(layout)
        else:
            work = job.work(
                model_version=str(version.version),
                model_digest=version.digest,
                contract_digest=plan.work.contract_digest,
            )
            require_same_work(layout, plan, work)
        return new_job(
            id=new_id(),
            program="predict",
            spec=bounded_spec(job),
            words=["--json", "--spec", f"env:{SPEC_VARIABLE}"],
            owner=application,
            application=application,
            output=body.output,
            request=_as_stored(body),
            model=version.reference,
        )

    def _spec(self, body: BatchBody, model: str, policy: BatchPathPolicy) -> PredictSpec:
        workers = self._starter.max_workers()
        return body.job(model, self._config, readable=policy.readable, workers=workers)

    # --- watch ---

    def list(self, application: str, *, limit: int) -> list[BatchStatus]:
        """Return an application's batches, newest first."""
        mine = (JobRow.application == application, _OF_BATCHES)
        return [self._status(row) for row in self._starter.records.recent(*mine, limit=limit)]

    def status(self, batch: str, application: str) -> BatchStatus:
        """Return the status of a batch.

        Raises:
            UnknownNameError: If the application has no batch of this id.
        """
        return self._status(self._row(batch, application))

    def _row(self, batch: str, application: str) -> JobRow:
        row = self._starter.find(batch, application)
        if row is None or "-" in batch:
            raise UnknownNameError("batch", batch, [], hint="GET /v1/batches lists yours.")
        return row

    def _status(self, row: JobRow) -> BatchStatus:
        """Return the status of a batch, from its record and its output."""
        layout = OutputLayout(row.output)
        try:
            progress, committed = read_progress(layout), read_commit(layout)
        except (InputError, OSError) as error:
            log.warning("batch %s: its output is not available: %s", row.id, error)
            return status_of(row, JobState(row.state), None, None, message=NOT_AVAILABLE)
        state, words = JobState(row.state), row.message
        if committed is not None:
            state, words = JobState.SUCCEEDED, ""
        elif row.cancel_requested and state not in _ENDED:
            state, words = JobState.CANCELLED, "Post the same body again to resume it."
        elif state == JobState.SUCCEEDED:
            state, words = JobState.FAILED, "Its results have been removed."
        elif state == JobState.QUEUED:
            words = "It waits in the queue."
        elif state == JobState.LOST:
            words = f"{words} Post the same body again to resume it."
        elif state == JobState.CANCELLED:
            words = "Post the same body again to resume it."
        message = hide_locations(words, _own_locations(row))
        return status_of(row, state, progress, committed, message=message)

    # --- end ---

    def cancel(self, batch: str, application: str) -> BatchStatus:
        """Cancel a batch; finished shards are kept. A batch that has ended stays as it is.

        Raises:
            UnknownNameError: If the application has no batch of this id.
            OutageError: If the job server does not respond.
        """
        row = self._row(batch, application)
        if self._status(row).state not in _ENDED:
            row = self._starter.records.cancel(row.id)
        return self._status(row)

    def results(self, batch: str, application: str) -> dict[str, Any]:
        """Describe the results of a batch that has succeeded.

        Raises:
            UnknownNameError: If the application has no batch of this id.
            NotFinishedError: If the batch has not succeeded yet.
        """
        row, committed = self._finished(batch, application)
        return {"id": row.id, **describe_results(row.output, committed)}

    def rows(self, batch: str, application: str, *, offset: int, limit: int) -> Iterator[bytes]:
        """Return rows of a batch that has succeeded as JSON lines, in the order of its inputs.

        Raises:
            UnknownNameError: If the application has no batch of this id.
            NotFinishedError: If the batch has not succeeded yet.
        """
        row, committed = self._finished(batch, application)
        return json_lines(row.output, committed, offset, limit)

    def report(self, batch: str, application: str) -> bytes:
        """Return the HTML report of a batch that has succeeded.

        Raises:
            UnknownNameError: If the application has no batch of this id.
            NotFinishedError: If the batch has not succeeded yet.
        """
        row, _ = self._finished(batch, application)
        with hiding_locations([row.output]):
            return storage.read_bytes(OutputLayout(row.output).report)

    def _finished(self, batch: str, application: str) -> tuple[JobRow, Commit]:
        row = self._row(batch, application)
        with hiding_locations([row.output]):
            committed = read_commit(OutputLayout(row.output))
        if committed is None:
            raise NotFinishedError(
                f"Batch {batch} is {self._status(row).state}; it has results once it has succeeded."
            )
        return row, committed


def _as_stored(body: BatchBody) -> dict[str, Any]:
    """Return a request as the database returns it."""
    stored: dict[str, Any] = json.loads(body.model_dump_json())
    return stored


def _own_locations(row: JobRow) -> list[str]:
    """Return the locations that the caller of a batch named."""
    sent = row.request
    named = [*sent.get("inputs", ()), *sent.get("since", ()), sent.get("failed_only"), row.output]
    return [place for place in named if place]
