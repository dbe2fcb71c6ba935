"""The jobs of a cluster through the job server of its head, with the cluster's token.

The words of a command travel as a list, never through a shell. A job keeps its name when it is
submitted again; its attempts are NAME, NAME.2, NAME.3 on the job server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Final

from eagleray.clusters.job_server import JobServer, SubmittedJob
from eagleray.clusters.profiles import ClusterProfile
from eagleray.clusters.remote_jobs import LogText, RemoteCommand, RemoteJob, command_text
from eagleray.clusters.uploads import (
    LocalInputs,
    find_local_inputs,
    require_remote_outputs,
)
from eagleray.core.errors import InputError, OutageError, UnknownNameError, UserError
from eagleray.core.job_state import JobState
from eagleray.core.spec import Names
from eagleray.database.tables import JobRow
from eagleray.scheduling.assignment import COMMAND, HANDED_OVER, Assignment, next_submission
from eagleray.scheduling.logs import OUTPUT_MARK
from eagleray.scheduling.packages import read_package, replace_words

__all__ = ["RayJobs"]

_METADATA: Final = "eagleray"
_OF_IMAGES: Final = frozenset({"predict", "pack"})
_OF_RAY: Final = re.compile(r"\S+ \S+\tINFO job_manager\.py|Running entrypoint for job ")
"""Begins the lines that the job server itself writes into a job's log."""


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
        self.start(self.prepare(command, name=name, user=user))
        return name

    def prepare(self, command: RemoteCommand, *, name: str, user: str) -> Assignment:
        """Return the first submission of a command, after the upload of its local inputs."""
        require_remote_outputs(command)
        local = find_local_inputs(command)
        record = {
            "program": command.program,
            "words": replace_words(command.words, local.names),
            "owner": user,
            "package": self._upload(local) if local.files else "",
            "version": version("eagleray"),
            "priority": command.priority,
            "retries": command.retries,
            "output": next(command.texts(Names.OUTPUT), ""),
            "s3": _s3_options(command),
        }
        inputs = command.parameters.get("inputs") if command.program in _OF_IMAGES else ()
        inputs = replace_words(inputs or (), local.names)
        return Assignment(job=name, submission=name, record=record, inputs=tuple(inputs))

    def start(self, assignment: Assignment) -> None:
        """Submit an attempt of a job."""
        package = assignment.record.get("package", "")
        environment: dict[str, Any] = {"env_vars": assignment.environment}
        if package:
            environment["working_dir"] = f"gcs://{package}"
        self._server.submit(
            {
                "submission_id": assignment.submission,
                "entrypoint": f"exec {COMMAND}",
                "runtime_env": environment,
                "metadata": {_METADATA: assignment.model_dump_json()},
            }
        )

    # --- attempts of recorded jobs, for a supervisor ---

    def start_attempt(self, row: JobRow) -> None:
        """Submit a recorded job under the name of its submission.

        Its local inputs are uploaded again if they are gone with an earlier head.
        """
        if row.package and not self._server.has_upload(row.package):
            self._server.upload(row.package, read_package(row))
        columns = ("program", "words", "owner", "package", "version", "priority", "retries")
        record = {name: getattr(row, name) for name in (*columns, "output", "s3")}
        self.start(Assignment(job=row.id, submission=row.submission, record=record))

    def failed_start(self, row: JobRow) -> str | None:
        """Return why the process of a submission ended; None if it runs, waits or is unknown."""
        try:
            job = self._server.job(row.submission)
        except UnknownNameError:
            return None
        ended = job.state.has_ended and job.exit_code != HANDED_OVER
        return job.message or f"it ended with exit code {job.exit_code}" if ended else None

    def stop_attempt(self, row: JobRow) -> None:
        """Stop what is left of a submission, if anything is."""
        with contextlib.suppress(UserError):
            self._server.stop(row.submission)

    # --- jobs ---

    def jobs(self) -> list[RemoteJob]:
        """Return the jobs that Eagleray submitted, newest first, each as its last attempt is."""
        found: dict[str, RemoteJob] = {}
        for job in self._server.jobs():
            assignment = _assignment_of(job)
            if assignment is not None:
                found.setdefault(assignment.job, _as_remote(job, assignment))
        return list(found.values())

    def job(self, name: str) -> RemoteJob:
        """Return a job."""
        job, assignment = self._last_attempt(name)
        return _as_remote(job, assignment)

    def logs(self, name: str) -> Iterator[LogText]:
        """Yield what the last attempt of a job has printed so far."""
        job, _ = self._last_attempt(name)
        return _lines(self._server.logs(job.name))

    def follow(self, name: str) -> Iterator[LogText]:
        """Yield what the last attempt of a job prints, until it has ended."""
        attempt = name  # the first one, which is found through an outage
        with contextlib.suppress(OutageError):
            attempt = self._last_attempt(name)[0].name
        for text in self._server.follow(attempt):
            yield from _lines(text)

    def stop(self, name: str) -> None:
        """Stop a job."""
        job, _ = self._last_attempt(name)
        self._server.stop(job.name)

    def retry(self, job: RemoteJob, *, name: str) -> str:  # noqa: ARG002 - it keeps its own
        """Submit the command of a job once more; it keeps its name."""
        last, assignment = self._last_attempt(job.name)
        if assignment is None:
            raise InputError(
                f"Job {job.name} was not submitted by Eagleray, so it cannot be retried."
            )
        if not job.state.has_ended:
            raise InputError(f"Job {job.name} is {job.state}; attach to it, or cancel it first.")
        again = next_submission(assignment.job, last.name)
        self.start(assignment.model_copy(update={"submission": again, "after": last.name}))
        return assignment.job

    def _last_attempt(self, name: str) -> tuple[SubmittedJob, Assignment | None]:
        """Return the last attempt of a job.

        Raises:
            UnknownNameError: If there is no job of that name.
        """
        jobs = self._server.jobs()
        for job in jobs:
            assignment = _assignment_of(job)
            if name == (job.name if assignment is None else assignment.job):
                return job, assignment
        raise UnknownNameError("job", name, [job.name for job in jobs])

    def _upload(self, local: LocalInputs) -> str:
        package, content = local.archive()
        if not self._server.has_upload(package):
            self._server.upload(package, content)
        return package


def _assignment_of(job: SubmittedJob) -> Assignment | None:
    """Return what a job was submitted as; None if it is not one of ours."""
    return Assignment.parse(job.metadata.get(_METADATA, ""))


def _s3_options(command: RemoteCommand) -> dict[str, Any]:
    """Return the options of a command that reach its output on S3."""
    from eagleray.io.storage import S3Options

    named = {
        field.name: command.parameters.get(f"s3_{field.name}")
        for field in dataclasses.fields(S3Options)
    }
    return {name: value for name, value in named.items() if value is not None}


def _lines(text: str) -> Iterator[LogText]:
    for line in text.splitlines(keepends=True):
        if not _OF_RAY.match(line):
            yield LogText(line.removeprefix(OUTPUT_MARK), line.startswith(OUTPUT_MARK))


def _as_remote(job: SubmittedJob, ours: Assignment | None) -> RemoteJob:
    waits = job.exit_code == HANDED_OVER
    record = ours.record if ours else {}
    return RemoteJob(
        name=ours.job if ours else job.name,
        state=JobState.QUEUED if waits else job.state,
        created=job.created,
        user=record.get("owner", ""),
        command=command_text(record["program"], record["words"]) if record else "",
        message=job.message if job.state.has_ended and job.exit_code and not waits else "",
        exit_code=None if waits else job.exit_code,
        details={"version": ours.version} if ours else {},
    )
