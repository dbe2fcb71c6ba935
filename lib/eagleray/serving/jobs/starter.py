"""Starts jobs of callers on the cluster, within limits: how many, and with how many workers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from eagleray.core.errors import InputError, OutageError, UnknownNameError
from eagleray.core.job_state import ACTIVE_STATES
from eagleray.core.settings import Settings
from eagleray.core.spec import Spec
from eagleray.database.store import OpenDatabase
from eagleray.database.tables import JobRow
from eagleray.io.spec_fields import S3Fields
from eagleray.scheduling.assignment import Assignment
from eagleray.scheduling.logs import log_folder
from eagleray.scheduling.records import JobRecords
from eagleray.serving.config import ServiceConfig
from eagleray.serving.jobs.launcher import Launcher
from eagleray.serving.problems import FullError, NotReadyError

__all__ = ["JobStarter", "bounded_spec"]

_MAX_SPEC_BYTES = 120_000  # Linux limits a variable to 128 KiB
_RETRY_AFTER = 30.0


def bounded_spec(spec: Spec | Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification as JSON values that fit into a variable.

    Raises:
        InputError: If they do not.
    """
    if isinstance(spec, Spec):
        fields = spec.model_dump(mode="json", exclude_defaults=True)
    else:
        fields = dict(spec)
    size = len(json.dumps(fields).encode())
    if size > _MAX_SPEC_BYTES:
        raise InputError(
            f"The request names too many locations ({size:,} bytes, at most {_MAX_SPEC_BYTES:,}); "
            "write them into a table and name that."
        )
    return fields


class JobStarter:
    """Starts jobs of callers, and finds their records.

    Args:
        settings: Settings of the service, which its jobs get too.
        config: Configuration of the service.
        launcher: Launcher of the jobs.
        database: Returns the organisation's database, once the service has started.
    """

    def __init__(
        self,
        settings: Settings,
        config: ServiceConfig,
        launcher: Launcher,
        *,
        database: Callable[[], OpenDatabase],
    ) -> None:
        self._settings, self._config, self._launcher = settings, config, launcher
        self._open = database

    @property
    def database(self) -> OpenDatabase:
        """The organisation's database."""
        return self._open()

    @property
    def records(self) -> JobRecords:
        """The records of jobs."""
        return JobRecords(self.database, self._settings)

    def find(self, job: str, application: str) -> JobRow | None:
        """Return a job of an application by its id; None if it has none of that id."""
        conditions = (JobRow.id == job, JobRow.application == application)
        return next(iter(self.records.recent(*conditions, limit=1)), None)

    def max_workers(self) -> int:
        """Return the number of workers of a job, from the resources that the service leaves.

        Raises:
            NotReadyError: If no resources are left.
        """
        capacity, config = self._launcher.capacity(), self._config
        held_cpus, held_gpus = config.claimed_resources
        cpus, gpus = capacity.cpus - held_cpus, capacity.gpus - held_gpus
        if capacity.gpus >= 1 and gpus < 1:
            raise NotReadyError(
                f"The service's replicas hold {held_gpus:g} of this cluster's {capacity.gpus:g} "
                "GPUs, and a job needs a whole one; have the operator add a GPU, or start fewer "
                "replicas.",
                retry_after=_RETRY_AFTER,
            )
        if cpus < 1:
            raise NotReadyError(
                f"The service's replicas hold {held_cpus:g} of this cluster's {capacity.cpus:g} "
                "CPU cores, and a job needs one; have the operator add a core, or start fewer "
                "replicas.",
                retry_after=_RETRY_AFTER,
            )
        return max(1, int(gpus if capacity.gpus >= 1 else cpus) // config.max_concurrent_batches)

    def require_room(self, application: str) -> None:
        """Refuse a job of an application that has too many already.

        Raises:
            FullError: If it has.
        """
        mine = (JobRow.application == application, JobRow.state.in_(ACTIVE_STATES))
        limit = self._config.max_batches_per_application
        active = [row for row in self.records.recent(*mine) if row.state in ACTIVE_STATES]
        if len(active) >= limit:
            raise FullError(
                f"{len(active)} jobs of this application run or wait, the maximum",
                retry_after=_RETRY_AFTER,
            )

    def start(self, row: JobRow) -> JobRow:
        """Store a new job and start its process, which waits for its turn.

        Raises:
            OutageError: If the job server does not respond; the job is not stored then.
        """
        row.submission = row.id
        row.s3 = dataclasses.asdict(S3Fields().with_settings(self._settings).s3)
        row.logs = log_folder(row, self._settings)
        stored = self.records.add(row)
        try:
            self._launch(stored)
        except OutageError:
            with self.database.session() as session:
                session.execute(
                    sa.delete(JobRow).where(JobRow.id == row.id, JobRow.epoch == row.epoch)
                )
            raise
        return stored

    def start_again(self, row: JobRow, spec: Mapping[str, Any]) -> JobRow:
        """Start the next attempt of a job that has ended.

        Args:
            row: The job as it was read.
            spec: Its specification, as the limits of its caller are now.

        Raises:
            NotReadyError: If its process has not ended yet.
            OutageError: If the job server does not respond.
            UnknownNameError: If the job has been removed.
        """
        if self.records.has_process(row):
            raise NotReadyError(
                f"Job {row.id} is still ending; try again in some seconds.", retry_after=2.0
            )
        with self.database.session() as session:
            session.execute(sa.update(JobRow).where(JobRow.id == row.id).values(spec=dict(spec)))
        again = self.records.submit_again(row)
        if again is None:  # another request has started it meanwhile
            found = self.find(row.id, row.application or "")
            if found is None:
                raise UnknownNameError("job", row.id, [])
            return found
        self._launch(again)
        return again

    def _launch(self, row: JobRow) -> None:
        environment = self._settings.as_environment()
        environment["EAGLERAY_MAX_CONCURRENT_JOBS"] = str(self._config.max_concurrent_batches)
        self._launcher.submit(Assignment(job=row.id, submission=row.submission), environment)
