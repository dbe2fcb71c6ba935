"""Starts jobs of callers as Ray jobs, through Ray's Jobs API.

A job belongs to the cluster, not to the replica that accepted it, and runs on the cluster of the
replica. Its process waits for its turn in the queue of the records.
"""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Mapping
from typing import Any

import ray
from ray.job_submission import JobSubmissionClient

from eagleray.core.errors import OutageError
from eagleray.scheduling.assignment import Assignment
from eagleray.serving.jobs.launcher import Capacity

__all__ = ["RayJobs"]

# The job runs at the lowest priority, and its workers inherit that. Without it, Ray would give the
# workers of a queued job a higher priority than all others.
_WORDS = ("nice", "-n", "19", sys.executable, "-P", "-m", "eagleray.scheduling.run")


class RayJobs:
    """A `Launcher` on the cluster that this process is part of."""

    def __init__(self) -> None:
        self._known: JobSubmissionClient | None = None
        self._lock = threading.Lock()

    def capacity(self) -> Capacity:
        """Return the resources of the cluster."""
        resources = ray.cluster_resources()
        return Capacity(resources.get("CPU", 0.0), resources.get("GPU", 0.0))

    def submit(self, assignment: Assignment, environment: Mapping[str, str]) -> None:
        """Start the process of a job.

        Raises:
            OutageError: If Ray's job server does not respond.
        """
        # Ray may give a job the address of another Ray on the same machine.
        here = {"ray_address": ray.get_runtime_context().gcs_address}
        variables = {**environment, **assignment.model_copy(update=here).environment}
        # The job gives its workers variables that it was given itself.
        variables["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
        request: dict[str, Any] = {
            "entrypoint": f"exec {shlex.join(_WORDS)}",
            "submission_id": assignment.submission,
            "runtime_env": {"env_vars": variables},
        }
        try:
            self._client().submit_job(**request)
        except (RuntimeError, ConnectionError, ValueError, OSError) as error:
            self._known = None  # the head of the cluster may be another one now
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise OutageError(
                f"Ray's job server does not respond ({first}); the cluster must be started with "
                "its dashboard, and the service with its token.",
                public="Jobs cannot be started now; try again later.",
            ) from error

    def _client(self) -> JobSubmissionClient:
        with self._lock:
            if self._known is None:
                self._known = JobSubmissionClient(ray.get_runtime_context().gcs_address)
            return self._known
