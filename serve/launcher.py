"""Batch jobs as Ray jobs: Ray's Jobs API starts, watches and ends them.

A job belongs to the cluster, not to the replica that accepted it. It runs on the cluster that the
replica is on; it waits there for a `BATCH_SLOT` where the cluster has that resource.
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
from eagleray.serving.batches import Capacity, Launched

__all__ = ["RayJobs"]

_STATES = {
    JobStatus.PENDING: JobState.QUEUED,
    JobStatus.RUNNING: JobState.RUNNING,
    JobStatus.SUCCEEDED: JobState.SUCCEEDED,
    JobStatus.FAILED: JobState.FAILED,
    JobStatus.STOPPED: JobState.CANCELLED,
}
_OUR_WORDS = "error: "  # begin the last line of a command that gives up
_LONGEST_MESSAGE = 1000


class RayJobs:
    """A `Launcher` on the cluster that this process is part of."""

    def __init__(self) -> None:
        self._known: JobSubmissionClient | None = None
        self._lock = threading.Lock()

    def capacity(self) -> Capacity:
        """Say what the cluster has."""
        resources = ray.cluster_resources()
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        return Capacity(cpus, gpus, waits=resources.get(BATCH_SLOT, 0.0) >= 1)

    def submit(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a job."""
        # It gives way to the service, and its workers do as their program does. Ray would have the
        # workers of a job that waited for a resource go before all others.
        words = shlex.join(["nice", "-n", "19", *command])
        slot = {BATCH_SLOT: 1.0} if self.capacity().waits else None
        # Ray tells a job the address of some Ray of the machine, which may be another one's.
        here = {"EAGLERAY_RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        self._ask(
            lambda client: client.submit_job(
                entrypoint=f"exec {words}",
                submission_id=name,
                runtime_env={"env_vars": {**environment, **here}},
                entrypoint_resources=slot,
            )
        )

    def status(self, name: str) -> Launched | None:
        """Return where a job is."""
        info: JobDetails | None = self._ask_about(lambda client: client.get_job_info(name))
        if info is None:
            return None
        failed = info.status == JobStatus.FAILED
        return Launched(_STATES[info.status], _last_words(info.message or "") if failed else "")

    def stop(self, name: str) -> None:
        """End a job."""
        self._ask_about(lambda client: client.stop_job(name))

    def _ask_about(self, question: Callable[[JobSubmissionClient], Any]) -> Any:
        """Ask about a job; None where there is none of its name."""
        try:
            return self._ask(question)
        except _NoSuchJobError:
            return None

    def _ask(self, question: Callable[[JobSubmissionClient], Any]) -> Any:
        """Ask the server of jobs.

        Raises:
            OutageError: It does not answer.
        """
        try:
            return question(self._client())
        except (RuntimeError, ConnectionError, ValueError, OSError) as error:
            if "status code 404" in str(error):
                raise _NoSuchJobError from error
            self._known = None  # the head of the cluster may be another one now
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise OutageError(
                f"Ray's server of jobs does not answer ({first}); the cluster must be started with "
                "its dashboard, and the service with its token.",
                public="What runs batch jobs does not answer now; try again later.",
            ) from error

    def _client(self) -> JobSubmissionClient:
        with self._lock:
            if self._known is None:
                self._known = JobSubmissionClient(ray.get_runtime_context().gcs_address)
            return self._known


class _NoSuchJobError(Exception):
    """There is no job of that name."""


def _last_words(message: str) -> str:
    """Return the sentence that a command ended with, or its last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    ours = [line.removeprefix(_OUR_WORDS) for line in lines if line.startswith(_OUR_WORDS)]
    return (ours or lines or [""])[-1][:_LONGEST_MESSAGE]
