"""Submits and follows jobs of a service: `client.jobs`.

    job = client.jobs.submit("train", {"data": "s3://flowers/", "name": "flowers"})
    for line in client.jobs.follow(job.id): print(line.text)
    client.jobs.wait(job.id)

Every submission has an id of its own, so a request whose connection broke is repeated and starts
one job.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from pydantic import ConfigDict

from eagleray.client.batch_jobs import path_segment
from eagleray.client.responses import as_model, member
from eagleray.core.display import escape_text
from eagleray.core.errors import JobFailedError
from eagleray.core.job_state import JobState
from eagleray.serving.prediction.responses import JobLogLine, JobLogs, JobResponse

__all__ = ["FIRST", "AsyncJobs", "Job", "Jobs"]

Result = TypeVar("Result")

_PATH = "/v1/jobs"
FIRST = "1.0"
"""Position of the first line of a log."""


class Job(JobResponse):
    """A job at one moment, as the service describes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended."""
        return self.state.has_ended

    def require_success(self) -> Job:
        """Return the job if it has succeeded.

        Raises:
            JobFailedError: If it failed or was cancelled.
        """
        if self.state != JobState.SUCCEEDED:
            raise JobFailedError(escape_text(f"Job {self.id} is {self.state}: {self.message}"))
        return self


def _path(job: str, last: str = "") -> str:
    return f"{_PATH}/{path_segment(job, 'job')}{last}"


class AsyncJobs:
    """Jobs of the caller.

    Args:
        send: Sends a request to the service: method, path, and keyword arguments of httpx.
    """

    def __init__(self, send: Callable[..., Awaitable[Any]]) -> None:
        self._send = send

    async def submit(
        self,
        command: str,
        spec: Mapping[str, Any],
        *,
        options: Mapping[str, Any] | None = None,
        priority: int = 0,
        retries: int = 0,
        request_id: str | None = None,
    ) -> Job:
        """Submit a job.

        Args:
            command: `predict`, `train`, `tune`, `evaluate`, `inspect` or `pack`.
            spec: Fields of the command's specification.
            options: Options of the command beside them: `alias`, `space`, `num_trials`, …
            priority: Jobs of a higher priority run first.
            retries: How often it starts again if it is lost.
            request_id: Id of this submission; the same one returns the same job. None draws one.

        Raises:
            RequestRefusedError: If the service refuses, does not respond in time, or the response
                is not of a service of Eagleray.
        """
        body: dict[str, Any] = {"command": command, "spec": dict(spec)}
        body |= {"options": dict(options or {}), "priority": priority, "retries": retries}
        body["request_id"] = request_id or secrets.token_hex(16)
        return as_model(Job, await self._send("POST", _PATH, json=body))

    async def status(self, job: str) -> Job:
        """Return the state of a job."""
        return as_model(Job, await self._send("GET", _path(job)))

    async def list(self) -> list[Job]:
        """Return the latest jobs, newest first."""
        found = member(await self._send("GET", _PATH), "jobs")
        return [as_model(Job, item) for item in found]

    async def logs(self, job: str, *, start: str = FIRST) -> JobLogs:
        """Return what a job has printed, from a position on, up to a limit of the service.

        Args:
            job: Id of the job.
            start: Position of the first line; `next` of the response is that after the last.
        """
        found = await self._send("GET", _path(job, "/logs"), params={"start": start})
        return as_model(JobLogs, found)

    async def follow(self, job: str, *, every: float = 1.0) -> AsyncIterator[JobLogLine]:
        """Yield what a job prints from its beginning, until it has ended.

        Args:
            job: Id of the job.
            every: Seconds between two requests while nothing new is there.
        """
        start = FIRST
        while True:
            logs = await self.logs(job, start=start)
            for line in logs.lines:
                yield line
            if not logs.lines and logs.ended:
                return
            start = logs.next
            if not logs.lines:
                await asyncio.sleep(every)

    async def wait(self, job: str, *, timeout: float | None = None, every: float = 1.0) -> Job:
        """Wait until a job has succeeded.

        Args:
            job: Id of the job.
            timeout: Seconds to wait; None for no limit.
            every: Seconds between two requests.

        Raises:
            JobFailedError: If the job failed or was cancelled.
            RequestRefusedError: If the service refuses or does not respond.
            TimeoutError: If the job does not end in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (found := await self.status(job)).has_ended:
            if deadline is not None and time.monotonic() + every > deadline:
                raise TimeoutError(f"job {job} is {found.state} after {timeout} s")
            await asyncio.sleep(every)
        return found.require_success()

    async def cancel(self, job: str) -> Job:
        """Cancel a job; what is finished is kept."""
        return as_model(Job, await self._send("POST", _path(job, "/cancel"), json={}))

    async def retry(self, job: str) -> Job:
        """Run a job that has ended once more; what is finished of it is kept."""
        return as_model(Job, await self._send("POST", _path(job, "/retry"), json={}))


class Runner(Protocol):
    """Runs a call of the asynchronous methods and waits for its result."""

    def __call__(self, call: Callable[[AsyncJobs], Coroutine[Any, Any, Result]], /) -> Result:
        """Return the result of the call."""


class Jobs:
    """Jobs of the caller; the methods are those of `AsyncJobs`.

    Args:
        run: Runs a call of `AsyncJobs`.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run

    def submit(
        self,
        command: str,
        spec: Mapping[str, Any],
        *,
        options: Mapping[str, Any] | None = None,
        priority: int = 0,
        retries: int = 0,
        request_id: str | None = None,
    ) -> Job:
        """Submit a job, as `AsyncJobs.submit` does."""
        return self._run(
            lambda jobs: jobs.submit(
                command,
                spec,
                options=options,
                priority=priority,
                retries=retries,
                request_id=request_id,
            )
        )

    def status(self, job: str) -> Job:
        """Return the state of a job."""
        return self._run(lambda jobs: jobs.status(job))

    def list(self) -> list[Job]:
        """Return the latest jobs, newest first."""
        return self._run(lambda jobs: jobs.list())

    def logs(self, job: str, *, start: str = FIRST) -> JobLogs:
        """Return what a job has printed, from a position on, as `AsyncJobs.logs` does."""
        return self._run(lambda jobs: jobs.logs(job, start=start))

    def follow(self, job: str, *, every: float = 1.0) -> Iterator[JobLogLine]:
        """Yield what a job prints from its beginning, until it has ended."""
        start = FIRST
        while True:
            logs = self.logs(job, start=start)
            yield from logs.lines
            if not logs.lines and logs.ended:
                return
            start = logs.next
            if not logs.lines:
                time.sleep(every)

    def wait(self, job: str, *, timeout: float | None = None, every: float = 1.0) -> Job:
        """Wait until a job has succeeded, as `AsyncJobs.wait` does."""
        return self._run(lambda jobs: jobs.wait(job, timeout=timeout, every=every))

    def cancel(self, job: str) -> Job:
        """Cancel a job; what is finished is kept."""
        return self._run(lambda jobs: jobs.cancel(job))

    def retry(self, job: str) -> Job:
        """Run a job that has ended once more; what is finished of it is kept."""
        return self._run(lambda jobs: jobs.retry(job))
