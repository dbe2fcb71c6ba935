"""The jobs of a cluster through the job server of its head, with the cluster's token.

The words of a command travel as a list, never through a shell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from eagleray.clusters.job_server import JobServer, SubmittedJob
from eagleray.clusters.profiles import ClusterProfile
from eagleray.clusters.remote_jobs import LogText, RemoteCommand, RemoteJob, command_text
from eagleray.clusters.run import OUTPUT_MARK, VARIABLE
from eagleray.clusters.uploads import (
    LocalInputs,
    find_local_inputs,
    replace_words,
    require_remote_outputs,
)
from eagleray.core.errors import InputError, UserError

__all__ = ["RayJobs", "Submission"]

_ENTRY_POINT: Final = "exec python -P -m eagleray.clusters.run"
_METADATA: Final = "eagleray"
_OF_RAY: Final = re.compile(r"\S+ \S+\tINFO job_manager\.py|Running entrypoint for job ")
"""Begins the lines that the job server itself writes into a job's log."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A command for a cluster, as it travels.

    Attributes:
        program: Name of the command: `predict`, `train`.
        words: Its command line, without the cluster.
        version: Version of Eagleray that submits it.
        user: Who submits it.
        package: Name of the uploaded archive with its local inputs; "" for none.
    """

    program: str
    words: tuple[str, ...]
    version: str
    user: str
    package: str = ""

    def as_json(self) -> str:
        """Return the submission as JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields)

    @classmethod
    def of(cls, job: SubmittedJob) -> Submission | None:
        """Return what a job was submitted as; None if it is not one of ours."""
        try:
            fields = json.loads(job.metadata.get(_METADATA, "null"))
            return None if fields is None else cls(**{**fields, "words": tuple(fields["words"])})
        except (ValueError, TypeError, KeyError):
            return None


class RayJobs:
    """The jobs of a cluster; implements `RemoteJobs`.

    Args:
        profile: The cluster.
    """

    def __init__(self, profile: ClusterProfile) -> None:
        assert profile.url is not None
        self._address = profile.address
        self._server = JobServer(profile.url, profile.secret())

    def facts(self) -> dict[str, Any]:
        """Return the version of Ray on the cluster."""
        theirs, ours = self._server.ray_version(), version("ray")
        if theirs.split(".")[:2] != ours.split(".")[:2]:
            raise UserError(
                f"The cluster at {self._address} runs Ray {theirs} and this machine has {ours}; "
                "install the version of Eagleray that the cluster has."
            )
        return {"ray": theirs}

    def submit(self, command: RemoteCommand, *, name: str, user: str) -> str:
        """Submit a command with its small local inputs."""
        require_remote_outputs(command)
        local = find_local_inputs(command)
        package = self._upload(local) if local.files else ""
        words = tuple(replace_words(command.words, local.names))
        self._start(Submission(command.program, words, version("eagleray"), user, package), name)
        return name

    def jobs(self) -> list[RemoteJob]:
        """Return the jobs that Eagleray submitted, newest first."""
        found = [(job, Submission.of(job)) for job in self._server.jobs()]
        return [_as_remote(job, ours) for job, ours in found if ours is not None]

    def job(self, name: str) -> RemoteJob:
        """Return a job."""
        job = self._server.job(name)
        return _as_remote(job, Submission.of(job))

    def logs(self, name: str) -> Iterator[LogText]:
        """Yield what a job has printed so far."""
        return _lines(self._server.logs(name))

    def follow(self, name: str) -> Iterator[LogText]:
        """Yield what a job prints, until it has ended."""
        for text in self._server.follow(name):
            yield from _lines(text)

    def stop(self, name: str) -> None:
        """Stop a job."""
        self._server.stop(name)

    def retry(self, job: RemoteJob, *, name: str) -> str:
        """Submit the command of a job once more, as another job."""
        submission = Submission.of(self._server.job(job.name))
        if submission is None:
            raise InputError(
                f"Job {job.name} was not submitted by Eagleray, so it cannot be retried."
            )
        if not job.state.has_ended:
            raise InputError(f"Job {job.name} is {job.state}; attach to it, or cancel it first.")
        self._start(submission, name)
        return name

    def _upload(self, local: LocalInputs) -> str:
        package, content = local.archive()
        if not self._server.has_upload(package):
            self._server.upload(package, content)
        return package

    def _start(self, submission: Submission, name: str) -> None:
        environment: dict[str, Any] = {"env_vars": {VARIABLE: submission.as_json()}}
        if submission.package:
            environment["working_dir"] = f"gcs://{submission.package}"
        self._server.submit(
            {
                "submission_id": name,
                "entrypoint": _ENTRY_POINT,
                "runtime_env": environment,
                "metadata": {_METADATA: submission.as_json()},
            }
        )


def _lines(text: str) -> Iterator[LogText]:
    for line in text.splitlines(keepends=True):
        if not _OF_RAY.match(line):
            yield LogText(line.removeprefix(OUTPUT_MARK), line.startswith(OUTPUT_MARK))


def _as_remote(job: SubmittedJob, ours: Submission | None) -> RemoteJob:
    return RemoteJob(
        name=job.name,
        state=job.state,
        created=job.created,
        user=ours.user if ours else "",
        command=command_text(ours.program, ours.words) if ours else "",
        message=job.message if job.state.has_ended and job.exit_code else "",
        exit_code=job.exit_code,
        details={"version": ours.version} if ours else {},
    )
