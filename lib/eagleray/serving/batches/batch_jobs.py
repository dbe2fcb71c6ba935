"""Starts, finds, watches and cancels the batch jobs of callers, and returns their results.

A batch is a row in the organisation's database, a job, and an output. The row has the caller and
the request; progress and results are read from the output. So a service that is restarted knows all
batches, and every replica knows the same ones.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from eagleray.batch.plan import PredictPlan
from eagleray.core.errors import InputError, OutageError, OutputExistsError, UnknownNameError
from eagleray.core.job_state import JobState
from eagleray.database.store import OpenDatabase
from eagleray.database.tables import JobRow
from eagleray.io import storage
from eagleray.io.fetch import packing_of
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.scheduling.records import new_job
from eagleray.serving.batches.launcher import Capacity, Launcher
from eagleray.serving.batches.path_policy import BatchPathPolicy
from eagleray.serving.batches.results import describe_results, json_lines
from eagleray.serving.batches.spec import COMMAND, BatchBody, spec_variable
from eagleray.serving.batches.status import BatchStatus, status_of
from eagleray.serving.config import ServiceConfig
from eagleray.serving.problems import (
    FullError,
    NotFinishedError,
    NotReadyError,
    hide_locations,
)
from eagleray.serving.routing import Snapshot, choose
from eagleray.sharded.commit import Commit, read_commit
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.plan import new_id, read_plan, require_same_work
from eagleray.sharded.prepare import require_free, require_writable
from eagleray.sharded.progress import Progress, read_progress

__all__ = ["BatchJobs"]

log = logging.getLogger(__name__)

_PUBLIC = "The output of this batch is not available now; try again later."
_ENDED = frozenset(state.value for state in JobState if state.has_ended)
_RETRY_AFTER = 30.0
_GLOB_CHARACTERS = frozenset("*?[")
_JOB_IS_GONE = (
    "It ended with the service or the cluster that ran it; post the same body again to resume it."
)
_MESSAGES = {JobState.QUEUED: "It waits in the queue."}


class BatchJobs:
    """The batch jobs of callers.

    The methods block on storage, database and the launcher; an event loop calls them in a thread.

    Args:
        registry: Registry of the models.
        config: Configuration of the service.
        launcher: Launcher of the jobs.
        database: Returns the organisation's database, once the service has started.
    """

    def __init__(
        self,
        registry: Registry,
        config: ServiceConfig,
        launcher: Launcher,
        *,
        database: Callable[[], OpenDatabase],
    ) -> None:
        self._registry, self._config, self._launcher = registry, config, launcher
        self._open = database
        settings = registry.settings
        self._environment = settings.as_environment()

    @property
    def _database(self) -> OpenDatabase:
        return self._open()

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
        with _hiding_locations(body.locations):
            return self._start(body, application, snapshot)

    def _start(self, body: BatchBody, application: str, snapshot: Snapshot) -> BatchStatus:
        policy = BatchPathPolicy(self._config, application)
        policy.require_any()
        policy.require_output(body.output)
        policy.require_inputs([*body.inputs, *body.earlier])
        with self._database.lock("batches") as session:
            row = self._same(session, body, application)
            if row is None:
                row = self._new_row(body, application, snapshot)
            else:
                status = self._status(row)
                there = read_commit(OutputLayout(row.output)) is not None
                if status.state not in _ENDED or (status.state == JobState.SUCCEEDED and there):
                    self._store(session, row)
                    return status
            self._require_capacity(session, application)
            self._submit(row, body, policy)
            self._store(session, row)
        return self._status(row)

    def _same(self, session: Session, body: BatchBody, application: str) -> JobRow | None:
        """Return the batch that has this output, if it is of the same request.

        Raises:
            OutputExistsError: If it is of another request.
        """
        query = sa.select(JobRow).where(JobRow.output == body.output)
        with session.begin():
            row = session.scalars(query.order_by(JobRow.created.desc()).limit(1)).first()
            session.expunge_all()
        if row is None or (row.application == application and row.request == _as_stored(body)):
            return row
        if row.state not in _ENDED or read_plan(OutputLayout(body.output), PredictPlan) is not None:
            raise OutputExistsError(
                f"Output {body.output} belongs to another batch; send the same request, or "
                "name another folder."
            )
        return None

    def _new_row(self, body: BatchBody, application: str, snapshot: Snapshot) -> JobRow:
        """Check early what the job itself would check, as far as that is cheap."""
        version = self._version(body.model, application, snapshot)
        for location in body.inputs:
            _require_there(location)
        layout = OutputLayout(body.output)
        plan = read_plan(layout, PredictPlan)
        if plan is None:
            require_free(layout)
            require_writable(layout)
        else:
            job = body.job(version.reference, self._config, readable=())
            work = job.work(
                model_version=str(version.version),
                model_digest=version.digest,
                contract_digest=plan.work.contract_digest,
            )
            require_same_work(layout, plan, work)
        return new_job(
            id=new_id(),
            program="predict",
            owner=application,
            application=application,
            output=body.output,
            request=_as_stored(body),
            model=version.reference,
        )

    def _version(self, model: str, application: str, snapshot: Snapshot) -> ModelVersion:
        """Return the requested version: the one that is named, else the pin, else the default."""
        name, separator, target = model.partition("@" if "@" in model else "/")
        if separator and not target:
            raise InputError(
                f"Model {model!r} is not a model or a version; write NAME, NAME@ALIAS or NAME/3."
            )
        if not separator:
            snapshot.require_model(name)
            caller = snapshot.applications.get(application)
            pinned = caller.pins.get(name) if caller else None
            target = pinned or snapshot.route(name).default
        choice = choose(snapshot, name, application=application, version=target)
        return self._registry.get(name, version=choice.version)

    def _require_capacity(self, session: Session, application: str) -> None:
        active = self._active(session, sa.true())
        own = sum(row.application == application for row in active)
        if own >= self._config.max_batches_per_application:
            raise FullError(
                f"{own} batches of this application run or wait, the maximum",
                retry_after=_RETRY_AFTER,
            )
        if (
            len(active) >= self._config.max_concurrent_batches
            and not self._launcher.capacity().waits
        ):
            raise FullError(
                f"{len(active)} batches are running, the maximum",
                retry_after=_RETRY_AFTER,
            )

    def _active(self, session: Session, condition: Any) -> list[JobRow]:
        """Return the batches that have not ended, after an update of each."""
        of_callers = JobRow.application.is_not(None)
        query = sa.select(JobRow).where(JobRow.state.not_in(_ENDED), of_callers, condition)
        with session.begin():
            rows = list(session.scalars(query))
            session.expunge_all()
        for row in rows:
            self._status(row)
            self._store(session, row)
        return [row for row in rows if row.state not in _ENDED]

    def _submit(self, row: JobRow, body: BatchBody, policy: BatchPathPolicy) -> None:
        workers = _workers(self._launcher.capacity(), self._config)
        job = body.job(row.model, self._config, readable=policy.readable, workers=workers)
        row.submission = f"eagleray-batch-{row.id}-{new_id()}"
        self._launcher.submit(row.submission, COMMAND, {**self._environment, **spec_variable(job)})
        row.state, row.message = JobState.QUEUED.value, ""

    def _store(self, session: Session, row: JobRow) -> None:
        with session.begin():
            session.merge(row)

    # --- watch ---

    def list(self, application: str, *, limit: int) -> list[BatchStatus]:
        """Return an application's batches, newest first."""
        query = sa.select(JobRow).where(JobRow.application == application)
        with self._database.reading() as session:
            rows = list(session.scalars(query.order_by(JobRow.created.desc()).limit(limit)))
        return [self._current(row) for row in rows]

    def status(self, batch: str, application: str) -> BatchStatus:
        """Return the status of a batch.

        Raises:
            UnknownNameError: If the application has no batch of this id.
        """
        return self._current(self._row(batch, application))

    def _row(self, batch: str, application: str) -> JobRow:
        with self._database.reading() as session:
            row = session.get(JobRow, batch)
        if row is None or row.application != application:
            raise UnknownNameError("batch", batch, [], hint="GET /v1/batches lists yours.")
        return row

    def _current(self, row: JobRow) -> BatchStatus:
        """Return the status of a batch, and store its end in the database."""
        before = row.state
        status = self._status(row)
        if status.state != before and status.state in _ENDED:
            self._store_end(row)
        return status

    def _store_end(self, row: JobRow) -> None:
        """Store how a job ended, unless another job of the batch has begun meanwhile."""
        with self._database.session() as session:
            session.execute(
                sa.update(JobRow)
                .where(JobRow.id == row.id, JobRow.submission == row.submission)
                .values(state=row.state, message=row.message)
            )

    def _status(self, row: JobRow) -> BatchStatus:
        """Return the status of a batch, and update its row without storing it."""
        layout = OutputLayout(row.output)
        try:
            progress, committed = read_progress(layout), read_commit(layout)
        except (InputError, OSError) as error:
            log.warning("batch %s: its output is not available: %s", row.id, error)
            return status_of(row, None, None, message=_PUBLIC)
        if row.state not in _ENDED:
            state, row.message = self._found(row, progress, committed)
            row.state = state.value
        message = hide_locations(row.message, _own_locations(row))
        return status_of(row, progress, committed, message=message)

    def _found(
        self, row: JobRow, progress: Progress | None, committed: Commit | None
    ) -> tuple[JobState, str]:
        if committed is not None:
            return JobState.SUCCEEDED, ""
        launched = self._launcher.status(row.submission)
        if launched is None:
            return JobState.FAILED, _JOB_IS_GONE
        if launched.state == JobState.SUCCEEDED:  # committed since we looked, or taken away
            if read_commit(OutputLayout(row.output)) is not None:
                return JobState.SUCCEEDED, ""
            return JobState.FAILED, "Its results have been removed."
        if launched.state != JobState.FAILED:
            return launched.state, _MESSAGES.get(launched.state, "")
        failed = progress is not None and progress.state == JobState.FAILED
        words = progress.message if progress and failed else ""
        return JobState.FAILED, launched.message or words or _JOB_IS_GONE

    # --- end ---

    def cancel(self, batch: str, application: str) -> BatchStatus:
        """Cancel a batch; finished shards are kept. A batch that has ended stays as it is.

        Raises:
            UnknownNameError: If the application has no batch of this id.
            OutageError: If the job server does not respond.
        """
        with self._database.lock("batches") as session:
            row = self._row(batch, application)
            if self._status(row).state not in _ENDED:
                self._launcher.stop(row.submission)
                row.state = JobState.CANCELLED.value
                row.message = "Post the same body again to resume it."
            self._store(session, row)
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
        with _hiding_locations([row.output]):
            return storage.read_bytes(OutputLayout(row.output).report)

    def _finished(self, batch: str, application: str) -> tuple[JobRow, Commit]:
        row = self._row(batch, application)
        with _hiding_locations([row.output]):
            committed = read_commit(OutputLayout(row.output))
        if committed is None:
            raise NotFinishedError(
                f"Batch {batch} is {self._current(row).state}; it has results once it has "
                "succeeded."
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


@contextlib.contextmanager
def _hiding_locations(shown: Sequence[str]) -> Iterator[None]:
    """Hide locations other than the caller's own in errors of storage.

    Raises:
        OutageError: If the storage does not respond.
        InputError: As raised, without the hidden locations.
    """
    try:
        yield
    except OSError as error:
        raise OutageError(f"A location is not available: {error}.", public=_PUBLIC) from error
    except InputError as error:
        words = hide_locations(str(error), shown)
        if words == str(error):
            raise
        log.warning("a batch is refused: %s", error)
        raise type(error)(words) from error


def _require_there(location: str) -> None:
    """Refuse a missing input; patterns and members of archives are checked by the job."""
    elsewhere = location.lower().startswith(("http://", "https://")) or packing_of(location)
    if not elsewhere and not _GLOB_CHARACTERS & set(location) and not storage.exists(location):
        raise InputError(f"There is no folder or file {location}; check the path.")


def _workers(capacity: Capacity, config: ServiceConfig) -> int:
    """Return the number of workers of a job, from the resources that the service leaves.

    Raises:
        NotReadyError: If no resources are left.
    """
    held_cpus, held_gpus = config.claimed_resources
    cpus, gpus = capacity.cpus - held_cpus, capacity.gpus - held_gpus
    if capacity.gpus >= 1 and gpus < 1:
        raise NotReadyError(
            f"The service's replicas hold {held_gpus:g} of this cluster's {capacity.gpus:g} GPUs, "
            "and a batch needs a whole one; have the operator add a GPU, or start fewer replicas.",
            retry_after=_RETRY_AFTER,
        )
    if cpus < 1:
        raise NotReadyError(
            f"The service's replicas hold {held_cpus:g} of this cluster's {capacity.cpus:g} CPU "
            "cores, and a batch needs one; have the operator add a core, or start fewer replicas.",
            retry_after=_RETRY_AFTER,
        )
    return max(1, int(gpus if capacity.gpus >= 1 else cpus) // config.max_concurrent_batches)
