"""The jobs of a service, with the key of an application: the token never leaves the cluster.

A command travels as its specification. Small text files that it names, such as KPIs and a search
space, travel in it; images and tables have to be in storage that the service reads.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, get_args

from eagleray.client import Client, RequestRefusedError
from eagleray.client.jobs import FIRST, Job
from eagleray.clusters.profiles import ClusterProfile
from eagleray.clusters.remote_jobs import LogText, RemoteCommand, RemoteJob, command_text
from eagleray.clusters.uploads import copy_command, is_local, require_remote_outputs
from eagleray.core.display import escape_text
from eagleray.core.errors import EaglerayError, InputError, OutageError, UnknownNameError, UserError
from eagleray.core.spec import Names
from eagleray.io.yaml_fields import read_fields
from eagleray.serving.jobs.body import CommandName, JobOptions

__all__ = ["ServiceJobs"]

_SECONDS: Final = 6.0  # for the first request with its retries
_PATIENT_SECONDS: Final = 60.0  # for one that has the service look up inputs and models
_OUTAGE_SECONDS: Final = 60.0  # a job that is followed outlives a restart of the service
_POLL_SECONDS: Final = 1.0
_MAX_TEXT_BYTES: Final = 64 * 1024
_OF_THIS_MACHINE: Final = frozenset({"spec", "cluster", "verbose"})
_BUSY: Final = frozenset({0, 429, 502, 503, 504})


class ServiceJobs:
    """The jobs of a service; implements `RemoteJobs`.

    Args:
        profile: The service.
    """

    def __init__(self, profile: ClusterProfile) -> None:
        assert profile.url is not None
        self._address = profile.address
        url, key = profile.url, profile.secret()
        self._client = Client(url, key=key, timeout=_SECONDS)
        self._patient = Client(url, key=key, timeout=_PATIENT_SECONDS)

    def facts(self) -> dict[str, Any]:
        """Return the version of Eagleray that the service runs."""
        with self._errors():
            theirs = self._client.version()
        ours = version("eagleray")
        if theirs.split(".")[:2] != ours.split(".")[:2]:
            raise UserError(
                f"The service at {self._address} runs Eagleray {escape_text(theirs)} and this "
                f"machine has {ours}; install the service's version."
            )
        return {"eagleray": theirs}

    def submit(self, command: RemoteCommand, *, name: str, user: str) -> str:  # noqa: ARG002
        """Submit the specification of a command; the service names the job and its owner."""
        if command.program not in get_args(CommandName):
            raise InputError(
                f"`eagleray {command.program}` cannot be sent to a service; run it on a node of "
                "the cluster, or by ray-jobs+https://HEAD with the cluster's token."
            )
        require_remote_outputs(command)
        _require_remote_inputs(command)
        options, spec = _options(command), _spec_fields(command)
        with self._errors():
            job = self._patient.jobs.submit(
                command.program,
                spec,
                options=options,
                priority=command.priority,
                retries=command.retries,
                request_id=name,
            )
        return job.id

    def jobs(self) -> list[RemoteJob]:
        """Return the jobs of the application, newest first."""
        with self._errors():
            return [_as_remote(job) for job in self._patient.jobs.list()]

    def job(self, name: str) -> RemoteJob:
        """Return a job of the application."""
        try:
            with self._errors():
                return _as_remote(self._patient.jobs.status(name))
        except (_NotFoundError, ValueError):
            raise UnknownNameError("job", name, [job.name for job in self.jobs()]) from None

    def logs(self, name: str) -> Iterator[LogText]:
        """Yield what a job has printed so far."""
        start = FIRST
        while True:
            with self._errors():
                found = self._patient.jobs.logs(name, start=start)
            if not found.lines:
                return
            start = found.next
            for line in found.lines:
                yield LogText(line.text, line.stream == "stdout")

    def follow(self, name: str) -> Iterator[LogText]:
        """Yield what a job prints, until it has ended."""
        start, answered = FIRST, time.monotonic()
        while True:
            try:
                with self._errors():
                    found = self._patient.jobs.logs(name, start=start)
            except OutageError:
                if time.monotonic() - answered > _OUTAGE_SECONDS:
                    raise
                time.sleep(_POLL_SECONDS)
                continue
            answered, start = time.monotonic(), found.next
            for line in found.lines:
                yield LogText(line.text, line.stream == "stdout")
            if not found.lines:
                if found.ended:
                    return
                time.sleep(_POLL_SECONDS)

    def stop(self, name: str) -> None:
        """Stop a job."""
        with self._errors():
            self._patient.jobs.cancel(name)

    def retry(self, job: RemoteJob, *, name: str) -> str:  # noqa: ARG002 - it keeps its own
        """Run a job once more, under its name."""
        with self._errors():
            return self._patient.jobs.retry(job.name).id

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise refusals of the service as errors that name its address.

        Raises:
            OutageError: If it does not answer, or is busy.
            UserError: If it refuses.
        """
        try:
            yield
        except RequestRefusedError as error:
            raise self._as_user_error(error) from None

    def _as_user_error(self, error: RequestRefusedError) -> EaglerayError:
        said = str(error).rstrip(".")
        if error.status in _BUSY:
            what = "No service answers" if error.status == 0 else "The service is busy"
            return OutageError(
                f"{what} at {self._address} ({said}); check the address and the network, or try "
                "again later."
            )
        if error.status == 401:
            return UserError(
                f"The service at {self._address} refuses the key ({said}); ask its operator for a "
                "key, and name its file: eagleray cluster add NAME ADDRESS --key-file FILE."
            )
        if error.status == 404:
            return _NotFoundError(f"{said}.")
        if "detail" not in error.problem or not 400 <= error.status < 500:
            return UserError(f"{self._address} does not answer as a service of Eagleray: {said}.")
        return UserError(f"{said}.")


class _NotFoundError(UserError):
    """The service does not know a name of the request."""


def _require_remote_inputs(command: RemoteCommand) -> None:
    """Refuse images, tables and packages of this disk.

    Raises:
        InputError: With the command that copies them.
    """
    for name, kind in command.names.items():
        is_text = name in ("spec", "space", "kpi")  # files of text, which travel as their content
        if is_text or kind not in (Names.INPUT, Names.MODEL):
            continue
        for word in RemoteCommand(command.program, (), command.parameters, {name: kind}).texts(
            kind
        ):
            if is_local(word) and (kind is Names.INPUT or Path(word).exists()):
                raise InputError(
                    f"{word} is on this disk, or nowhere, and the service does not read it; copy "
                    f"it once ({copy_command(word)}), and name it there."
                )


def _spec_fields(command: RemoteCommand) -> dict[str, Any]:
    """Return the fields of the specification that are given, on the command line or in its file.

    Raises:
        UserError: If a field is invalid, or a file cannot be read.
    """
    assert command.spec is not None
    given = {
        name: value
        for name, value in command.parameters.items()
        if name in command.spec.model_fields and value not in (None, [], ())
    }
    file = command.parameters.get("spec")
    fields = {**(read_fields(file) if file else {}), **given}

    def name_of(field: str) -> str:
        if not field:
            return file or ""
        flag = f"--{field.replace('_', '-')}"
        return flag if field in given or not file else f"{file}: {field}"

    if "kpi" in fields:
        fields["kpi"] = f"text:{_read_text(str(fields['kpi']))}"
    if command.program == "tune":  # the other fields are searched
        return fields
    made = command.spec.make(fields, name=name_of)
    return made.model_dump(mode="json", include=set(fields))


def _options(command: RemoteCommand) -> dict[str, Any]:
    """Return the options of a command beside its specification.

    Raises:
        InputError: If one is not for jobs of a service.
    """
    assert command.spec is not None
    options: dict[str, Any] = {}
    for name, value in command.parameters.items():
        if name in command.spec.model_fields or name in _OF_THIS_MACHINE or not value:
            continue
        if name not in JobOptions.model_fields:
            raise InputError(
                f"--{name.removesuffix('_run').replace('_', '-')} is not for jobs of a service; "
                "leave it out."
            )
        options[name] = read_fields(value, "search space") if name == "space" else value
    return options


def _read_text(location: str) -> str:
    try:
        content = Path(location).read_bytes()
        text = content.decode()
    except FileNotFoundError:
        raise InputError(f"There is no KPI file {location} on this disk; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{location} cannot be read as text ({error}).") from None
    if len(content) > _MAX_TEXT_BYTES:
        raise InputError(f"{location} has more than the {_MAX_TEXT_BYTES:,} bytes of a KPI file.")
    return text


def _as_remote(job: Job) -> RemoteJob:
    spec: Mapping[str, Any] = job.request.get("spec") or {}
    words: list[str] = []
    for field, value in spec.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{field.replace('_', '-')}", str(one)]
    return RemoteJob(
        name=job.id,
        state=job.state,
        created=job.created,
        user=job.application,
        command=command_text(job.command, words),
        message=job.message,
        exit_code=job.exit_code,
        details={
            "priority": job.priority,
            "position": job.position,
            "attempt": job.attempt,
            "done": job.done,
            "total": job.total,
            "failed": job.failed,
            "output": job.output,
        },
    )
