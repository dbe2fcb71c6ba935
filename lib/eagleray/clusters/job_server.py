"""The job server of a cluster's head, over HTTP: submit, find, follow and stop jobs.

Ray documents this interface. Its own client waits without end for a head that does not answer, and
takes a second to import.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import httpx

from eagleray.core.environment import is_loopback
from eagleray.core.errors import OutageError, UnknownNameError, UserError
from eagleray.core.job_state import JobState

__all__ = ["JobServer", "SubmittedJob"]

_STATES: Final = {
    "PENDING": JobState.QUEUED,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
    "STOPPED": JobState.CANCELLED,
}
_SECONDS: Final = 8.0
_UPLOAD_SECONDS: Final = 300.0
_PATIENCE_SECONDS: Final = 60.0  # a job that is followed outlives a restart of a proxy


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job as the job server knows it.

    Attributes:
        name: Its name on the cluster.
        state: State of its process.
        created: ISO time of its submission, UTC; "" if unknown.
        message: What Ray says of its end.
        exit_code: Exit code of its process, once it has ended by itself.
        metadata: What the submitter stored along with it.
    """

    name: str
    state: JobState
    created: str
    message: str
    exit_code: int | None
    metadata: Mapping[str, str]


class JobServer:
    """A job server; every call ends within seconds.

    Args:
        url: URL of the server.
        token: Token of the cluster.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=_SECONDS,
            follow_redirects=False,  # the token is for this server
            trust_env=not is_loopback(httpx.URL(url).host),  # and not for a proxy before a tunnel
        )

    def ray_version(self) -> str:
        """Return the version of Ray on the cluster.

        Raises:
            OutageError: If no job server answers.
            UserError: If the token is wrong.
        """
        return str(self._call("GET", "/api/version").json().get("ray_version", ""))

    def submit(self, request: Mapping[str, Any]) -> None:
        """Start a job.

        Args:
            request: Body of the request: `submission_id`, `entrypoint`, `runtime_env`, `metadata`
                and the resources of the entry point.

        Raises:
            OutageError: If the server does not answer.
            UserError: If it refuses the job or the token.
        """
        self._call("POST", "/api/jobs/", json=dict(request), timeout=_UPLOAD_SECONDS)

    def jobs(self) -> list[SubmittedJob]:
        """Return all jobs that were submitted, newest first."""
        found = [_job(each) for each in self._call("GET", "/api/jobs/").json()]
        return sorted(found, key=lambda job: job.created, reverse=True)

    def job(self, name: str) -> SubmittedJob:
        """Return a job.

        Raises:
            UnknownNameError: If there is none of that name.
        """
        response = self._call("GET", f"/api/jobs/{name}", unknown_is_error=False)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise UnknownNameError("job", name, [job.name for job in self.jobs()])
        return _job(response.json())

    def logs(self, name: str) -> str:
        """Return what a job has printed so far; "" before it starts."""
        response = self._call("GET", f"/api/jobs/{name}/logs", unknown_is_error=False)
        return str(response.json().get("logs") or "") if response.is_success else ""

    def follow(self, name: str, *, every: float = 1.0) -> Iterator[str]:
        """Yield what a job prints, in pieces of whole lines, until it has ended.

        Args:
            name: Name of the job.
            every: Seconds between two requests.

        Raises:
            OutageError: If the server does not answer for a minute.
        """
        shown, answered = 0, time.monotonic()
        while True:
            try:
                ended = self.job(name).state.has_ended
                text = self.logs(name)
            except OutageError:
                if time.monotonic() - answered > _PATIENCE_SECONDS:
                    raise
                time.sleep(every)
                continue
            answered = time.monotonic()
            end = len(text) if ended else text.rfind("\n") + 1
            if end > shown:
                yield text[shown:end]
                shown = end
            if ended:
                return
            time.sleep(every)

    def stop(self, name: str) -> None:
        """Stop a job that runs or waits."""
        self._call("POST", f"/api/jobs/{name}/stop")

    def has_upload(self, package: str) -> bool:
        """Whether the cluster has an uploaded archive of this name."""
        path = f"/api/packages/gcs/{package}"
        return self._call("GET", path, unknown_is_error=False).is_success

    def upload(self, package: str, content: bytes) -> None:
        """Upload an archive under a name that is made of its digest."""
        path = f"/api/packages/gcs/{package}"
        self._call("PUT", path, content=content, timeout=_UPLOAD_SECONDS)

    def _call(
        self, method: str, path: str, *, unknown_is_error: bool = True, **arguments: Any
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise OutageError(
                f"No job server of Ray answers at {self._url} ({error or type(error).__name__}); "
                "check the address, that the head runs with its dashboard, and the tunnel or proxy "
                "to it."
            ) from None
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise UserError(
                f"The cluster at {self._url} refuses the token; get the present one from its "
                "operator."
            )
        if response.is_success or not (unknown_is_error or response.status_code != 404):
            return response
        if response.is_server_error:
            raise OutageError(
                f"The job server at {self._url} answers with status {response.status_code}; see "
                "the logs of the head, and try again."
            )
        first = next(iter(response.text.strip().splitlines()), "")[:300]
        raise UserError(
            f"The job server at {self._url} refuses {method} {path} with status "
            f"{response.status_code} ({first}); check that it is the head of a Ray cluster."
        )


def _job(found: Mapping[str, Any]) -> SubmittedJob:
    started = found.get("start_time")
    created = datetime.fromtimestamp(started / 1000, UTC).isoformat() if started else ""
    return SubmittedJob(
        name=str(found.get("submission_id") or found.get("job_id") or ""),
        state=_STATES.get(str(found.get("status")), JobState.UNKNOWN),
        created=created,
        message=str(found.get("message") or ""),
        exit_code=found.get("driver_exit_code"),
        metadata=found.get("metadata") or {},
    )
