"""Runs batch jobs as Ray jobs, through Ray's Jobs API.

A job belongs to the cluster, not to the replica that accepted it, and runs on the cluster of the
replica. It waits for a `BATCH_SLOT` if the cluster has that resource.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from eagleray.core.errors import OutageError
from eagleray.core.job_state import JobState
from eagleray.core.ray_session import BATCH_SLOT
from eagleray.serving.batches import Capacity, LaunchedJob

__all__ = ["RayJobs"]

_STATES = {
    JobStatus.PENDING: JobState.QUEUED,
    JobStatus.RUNNING: JobState.RUNNING,
    JobStatus.SUCCEEDED: JobState.SUCCEEDED,
    JobStatus.FAILED: JobState.FAILED,
    JobStatus.STOPPED: JobState.CANCELLED,
}
_ERROR_PREFIX = "error: "  # of the last line of a command that fails
_MAX_MESSAGE_LENGTH = 1000


class RayJobs:
    """A `Launcher` on the cluster that this process is part of."""

    def __init__(self) -> None:
        self._known: JobSubmissionClient | None = None
        self._lock = threading.Lock()

    def capacity(self) -> Capacity:
        """Return the resources of the cluster."""
        resources = ray.cluster_resources()
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        return Capacity(cpus, gpus, waits=resources.get(BATCH_SLOT, 0.0) >= 1)

    def submit(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a job."""
        # The job runs at the lowest priority, and its workers inherit that. Without it, Ray would
        # give the workers of a queued job a higher priority than all others.
        words = shlex.join(["nice", "-n", "19", *command])
        slot = {BATCH_SLOT: 1.0} if self.capacity().waits else None
        # Ray may give a job the address of another Ray on the same machine.
        here = {"EAGLERAY_RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        self._call(
            lambda client: client.submit_job(
                entrypoint=f"exec {words}",
                submission_id=name,
                runtime_env={"env_vars": {**environment, **here}},
                entrypoint_resources=slot,
            )
        )

    def status(self, name: str) -> LaunchedJob | None:
        """Return the state of a job."""
        info: JobDetails | None = self._call_for_job(lambda client: client.get_job_info(name))
        if info is None:
            return None
        failed = info.status == JobStatus.FAILED
        return LaunchedJob(
            _STATES[info.status], _error_sentence(info.message or "") if failed else ""
        )

    def stop(self, name: str) -> None:
        """Stop a job."""
        self._call_for_job(lambda client: client.stop_job(name))

    def _call_for_job(self, call: Callable[[JobSubmissionClient], Any]) -> Any:
        """Call the server about a job; None if there is no job of its name."""
        try:
            return self._call(call)
        except _NoSuchJobError:
            return None

    def _call(self, call: Callable[[JobSubmissionClient], Any]) -> Any:
        """Call Ray's job server.

        Raises:
            OutageError: If it does not respond.
        """
        try:
            return call(self._client())
        except (RuntimeError, ConnectionError, ValueError, OSError) as error:
            if "status code 404" in str(error):
                raise _NoSuchJobError from error
            self._known = None  # the head of the cluster may be another one now
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise OutageError(
                f"Ray's job server does not respond ({first}); the cluster must be started with "
                "its dashboard, and the service with its token.",
                public="Batch jobs cannot be started now; try again later.",
            ) from error

    def _client(self) -> JobSubmissionClient:
        with self._lock:
            if self._known is None:
                self._known = JobSubmissionClient(ray.get_runtime_context().gcs_address)
            return self._known


class _NoSuchJobError(Exception):
    """There is no job of that name."""


def _error_sentence(message: str) -> str:
    """Return the error sentence that a command ended with, else its last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    ours = [line.removeprefix(_ERROR_PREFIX) for line in lines if line.startswith(_ERROR_PREFIX)]
    return (ours or lines or [""])[-1][:_MAX_MESSAGE_LENGTH]
