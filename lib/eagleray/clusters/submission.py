"""Submits a command to a cluster's job server, and shows what it prints until it ends.

The words of the command travel as a list, never through a shell.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from eagleray.clusters.job_server import JobServer, SubmittedJob
from eagleray.clusters.profiles import ClusterProfile
from eagleray.clusters.run import OUTPUT_MARK, VARIABLE
from eagleray.clusters.uploads import (
    LocalInputs,
    find_local_inputs,
    replace_words,
    require_remote_outputs,
)
from eagleray.core.errors import ExitCode, InputError, UserError
from eagleray.core.job_state import JobState

__all__ = ["Submission", "connect", "print_until_end", "resubmit", "submit"]

_ENTRY_POINT: Final = "exec python -P -m eagleray.clusters.run"
_METADATA: Final = "eagleray"
_OF_RAY: Final = re.compile(r"\S+ \S+\tINFO job_manager\.py|Running entrypoint for job ")
"""Begins the lines that the job server itself writes into a job's log."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A command for a cluster.

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


def connect(profile: ClusterProfile) -> JobServer:
    """Return the job server of a cluster, which answers and accepts the token.

    Raises:
        UserError: If it does not, or runs another version of Ray.
    """
    assert profile.url is not None
    server = JobServer(profile.url, profile.token())
    theirs, ours = server.ray_version(), version("ray")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise UserError(
            f"The cluster at {profile.address} runs Ray {theirs} and this machine has {ours}; "
            "install the version of Eagleray that the cluster has."
        )
    return server


def submit(
    server: JobServer,
    program: str,
    words: Sequence[str],
    parameters: Mapping[str, Any],
    *,
    user: str,
    name: str,
) -> None:
    """Submit a command with its small local inputs.

    Args:
        server: Where to.
        program: Name of the command.
        words: Its command line, without the cluster.
        parameters: The same, parsed: values by name.
        user: Who submits it.
        name: Name that the job gets.

    Raises:
        InputError: If an input or an output is not reached from there.
        UserError: If the server refuses the job.
    """
    require_remote_outputs(parameters)
    local = find_local_inputs(parameters)
    package = _upload(server, local) if local.files else ""
    replaced = tuple(replace_words(words, local.names))
    _start(server, Submission(program, replaced, version("eagleray"), user, package), name)


def resubmit(server: JobServer, job: SubmittedJob, *, name: str) -> None:
    """Submit the command of a job once more; what is done of it is kept.

    Raises:
        InputError: If the job runs, or Eagleray did not submit it.
    """
    submission = Submission.of(job)
    if submission is None:
        raise InputError(f"Job {job.name} was not submitted by Eagleray, so it cannot be retried.")
    if not job.state.has_ended:
        raise InputError(f"Job {job.name} is {job.state}; attach to it, or cancel it first.")
    _start(server, submission, name)


def print_until_end(server: JobServer, name: str) -> int:
    """Print what a job prints, on the stream that it prints it on; return its exit code."""
    for text in server.follow(name):
        for line in text.splitlines(keepends=True):
            if _OF_RAY.match(line):
                continue
            stream = sys.stdout if line.startswith(OUTPUT_MARK) else sys.stderr
            stream.write(line.removeprefix(OUTPUT_MARK))
        sys.stdout.flush()
    job = server.job(name)
    if job.state == JobState.SUCCEEDED:
        return ExitCode.OK
    if job.state == JobState.CANCELLED:
        return ExitCode.INTERRUPTED
    return job.exit_code or ExitCode.JOB_FAILED


def _upload(server: JobServer, local: LocalInputs) -> str:
    package, content = local.archive()
    if not server.has_upload(package):
        server.upload(package, content)
    return package


def _start(server: JobServer, submission: Submission, name: str) -> None:
    environment: dict[str, Any] = {"env_vars": {VARIABLE: submission.as_json()}}
    if submission.package:
        environment["working_dir"] = f"gcs://{submission.package}"
    server.submit(
        {
            "submission_id": name,
            "entrypoint": _ENTRY_POINT,
            "runtime_env": environment,
            "metadata": {_METADATA: submission.as_json()},
        }
    )
