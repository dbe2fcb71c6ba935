"""The interface to a cluster from outside: submit, find, follow, stop and retry jobs.

`ray_jobs` implements it for the job server of a head, and `service_jobs` for a service.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from eagleray.core.errors import ExitCode, UnknownNameError
from eagleray.core.job_state import JobState
from eagleray.core.spec import Names, Spec

__all__ = [
    "LogText",
    "RemoteCommand",
    "RemoteJob",
    "RemoteJobs",
    "command_text",
    "exit_code_of",
    "find_job",
]


@dataclass(frozen=True, slots=True)
class RemoteCommand:
    """A checked command for a cluster.

    Attributes:
        program: Name of the command: `predict`, `train`.
        words: Its command line, without the cluster.
        parameters: The same, parsed: values by name; None or empty where nothing is given.
        names: What each parameter names outside the command, for those that do.
        spec: Specification that the command makes; None if it makes none.
        priority: Jobs of a higher priority run first.
        retries: How often the job is submitted again if it is lost.
    """

    program: str
    words: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, Names] = field(default_factory=dict)
    spec: type[Spec] | None = None
    priority: int = 0
    retries: int = 0

    def texts(self, *kinds: Names) -> Iterator[str]:
        """Yield the values of the parameters that name something of these kinds."""
        for name, kind in self.names.items():
            value = self.parameters.get(name)
            if kind in kinds:
                yield from [value] if isinstance(value, str) else filter(None, value or ())


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """A job on a cluster at one moment.

    Attributes:
        name: Its name there.
        state: Its state.
        created: ISO time of its submission, UTC; "" if unknown.
        user: User or application that submitted it.
        command: Its command, for people.
        message: Explanation of the state, if there is one.
        exit_code: Exit code of its command, once it has ended by itself.
        details: What else is known of it, for `show`.
    """

    name: str
    state: JobState
    created: str = ""
    user: str = ""
    command: str = ""
    message: str = ""
    exit_code: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogText:
    """A piece of what a job has printed: whole lines, on one stream.

    Attributes:
        text: The lines with their ends.
        is_output: Whether they are of standard output, rather than of standard error.
    """

    text: str
    is_output: bool


class RemoteJobs(Protocol):
    """The jobs of a cluster; every call but `follow` ends within seconds.

    All methods raise `OutageError` if the cluster does not answer, and `UserError` if it refuses
    the key or the token.
    """

    def facts(self) -> dict[str, Any]:
        """Return what the cluster says of itself, such as its versions.

        Raises:
            UserError: If it has another version than this machine.
        """

    def submit(self, command: RemoteCommand, *, name: str, user: str) -> str:
        """Submit a command with what it needs of this disk.

        Args:
            command: The command.
            name: Name that the job gets, unless the cluster chooses it.
            user: Who submits it.

        Returns:
            The name of the job.

        Raises:
            InputError: If an input or an output cannot be reached from there.
            UserError: If the job is refused.
        """

    def jobs(self) -> list[RemoteJob]:
        """Return the jobs, newest first."""

    def job(self, name: str) -> RemoteJob:
        """Return a job.

        Raises:
            UnknownNameError: If there is none of that name.
        """

    def logs(self, name: str) -> Iterator[LogText]:
        """Yield what a job has printed so far."""

    def follow(self, name: str) -> Iterator[LogText]:
        """Yield what a job prints from its beginning, until it has ended.

        Raises:
            OutageError: If the cluster does not answer for a minute.
        """

    def stop(self, name: str) -> None:
        """Stop a job that runs or waits; what is finished is kept."""

    def retry(self, job: RemoteJob, *, name: str) -> str:
        """Run a job that has ended once more; what is finished of it is kept.

        Args:
            job: The job.
            name: Name that the new job gets, unless the job keeps its own.

        Returns:
            The name of the job that runs.

        Raises:
            InputError: If it has not ended, or cannot be repeated.
        """


def find_job(cluster: RemoteJobs, name: str) -> RemoteJob:
    """Return the job of a name, or of the first characters of one.

    Raises:
        UnknownNameError: If there is none, or there are several.
    """
    try:
        return cluster.job(name)
    except UnknownNameError:
        found = [job for job in cluster.jobs() if job.name.startswith(name)]
        if len(found) == 1 and name:
            return found[0]
        raise


def exit_code_of(job: RemoteJob) -> int:
    """Return the exit code that a command of this job's outcome has on this machine."""
    if job.state == JobState.SUCCEEDED:
        return ExitCode.OK
    if job.state == JobState.CANCELLED:
        return ExitCode.INTERRUPTED
    return job.exit_code or ExitCode.JOB_FAILED


def command_text(program: str, words: Sequence[str]) -> str:
    """Return a command as people type it."""
    return shlex.join(["eagleray", program, *words])
