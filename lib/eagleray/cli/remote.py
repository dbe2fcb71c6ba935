"""Runs a command on a cluster that this machine is no node of, if its words name one."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from eagleray.core.errors import ExitCode, OutageError
from eagleray.core.settings import read_settings

if TYPE_CHECKING:  # commands that stay here start at once
    from eagleray.clusters.remote_jobs import LogText, RemoteCommand, RemoteJobs

__all__ = ["follow_job", "jobs_on", "new_job_name", "print_logs", "run_on_cluster"]

_FLAG: Final = "--cluster"
_DETACH: Final = "--detach"
_STAYS_HERE: Final = frozenset({"demo", "serve", "gateway"})


def run_on_cluster(program: str, module: str, words: Sequence[str]) -> list[str]:
    """Submit a command if its cluster is reached from outside; else return its words.

    Args:
        program: Name of the command, such as `predict`.
        module: Module of the program.
        words: Its command line.

    Returns:
        The words with the address of the cluster instead of its name. A command that was submitted
        does not return: it exits with the exit code of its job, or with 0 if it is detached.

    Raises:
        UserError: If the cluster or an input cannot be reached.
    """
    if program in _STAYS_HERE or {"--help", "-h"} & set(words):
        return list(words)
    named, rest = _take_option(words, _FLAG)
    from eagleray.clusters.profiles import ClusterProfiles, resolve_cluster

    settings = read_settings()
    profile = resolve_cluster(named, settings)
    if profile is None:
        return list(words)
    if profile.url is None:
        if named is not None:
            return [*rest, _FLAG, profile.address]
        os.environ["EAGLERAY_RAY_ADDRESS"] = profile.address  # of the cluster in use
        return list(words)
    from eagleray.clusters.connect import connect

    detached = _DETACH in rest
    command = _parse(program, module, [word for word in rest if word != _DETACH])
    cluster = named or settings.ray_address or ClusterProfiles.read(settings).used or ""
    raise SystemExit(_submit(connect(profile), command, cluster, detached=detached))


def jobs_on(named: str) -> RemoteJobs:
    """Return the jobs of a cluster that is named on the command line.

    Raises:
        UserError: If the cluster is unknown, is not reached from outside, or does not answer.
    """
    from eagleray.clusters.connect import connect
    from eagleray.clusters.profiles import resolve_cluster
    from eagleray.core.errors import InputError

    profile = resolve_cluster(named, read_settings())
    if profile is None or profile.url is None:
        raise InputError(
            f"{named} is not reached from outside; name a cluster with an address such as "
            "https://SERVICE or ray-jobs+https://HEAD."
        )
    return connect(profile)


def follow_job(jobs: RemoteJobs, name: str, *, cluster: str, note: str = "") -> int:
    """Show a job until it ends; an interrupt leaves it running and says so.

    Args:
        jobs: The jobs of the cluster.
        name: Name of the job.
        cluster: Name or address of the cluster, for what is said.
        note: Said first.

    Returns:
        The exit code of the job, or 130 if its output is no longer shown.

    Raises:
        OutageError: If the cluster does not answer for a minute.
    """
    from eagleray.cli.console import Console
    from eagleray.clusters.remote_jobs import exit_code_of

    console = Console(json_output=True)  # standard output is the job's
    goes_on = (
        f"Job {name} goes on without this terminal: `eagleray jobs attach {name} --cluster "
        f"{cluster}` shows it, `eagleray jobs cancel {name} --cluster {cluster}` ends it."
    )
    try:
        if note:
            console.announce(note)
        print_logs(jobs.follow(name))
        return exit_code_of(jobs.job(name))
    except KeyboardInterrupt:
        console.announce(goes_on)
        return ExitCode.INTERRUPTED
    except OutageError:
        console.announce(goes_on)
        raise


def print_logs(texts: Iterable[LogText]) -> None:
    """Print what a job has printed, each line on the stream that it was printed on."""
    import sys

    for text in texts:
        stream = sys.stdout if text.is_output else sys.stderr
        stream.write(text.text)
        stream.flush()


def new_job_name(program: str) -> str:
    """Return a name for a submitted job."""
    import secrets

    return f"{program}-{secrets.token_hex(4)}"


def _submit(jobs: RemoteJobs, command: RemoteCommand, cluster: str, *, detached: bool) -> int:
    from eagleray.cli.console import Console

    user = read_settings().actor
    name = jobs.submit(command, name=new_job_name(command.program), user=user)
    note = f"Job {name} is submitted to {cluster}."
    if detached:
        Console().announce(note)
        return ExitCode.OK
    return follow_job(jobs, name, cluster=cluster, note=note)


def _parse(program: str, module: str, words: Sequence[str]) -> RemoteCommand:
    """Parse a command line as its program does; a mistake ends this process as it would there."""
    import typer.main

    from eagleray.cli.job import command_app
    from eagleray.cli.options import named_places, spec_of
    from eagleray.clusters.remote_jobs import RemoteCommand

    found = importlib.import_module(module)
    app, name = command_app(found.main, module_docstring=found.__doc__)
    command: Any = typer.main.get_command(app)
    parameters: dict[str, Any] = {}
    command.callback = lambda **values: parameters.update(values)
    try:
        command(list(words), prog_name=name)
    except SystemExit as end:
        if end.code:
            raise
    places, spec = named_places(found.main), spec_of(found.main)
    return RemoteCommand(program, tuple(words), parameters, places, spec)


def _take_option(words: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """Return the value of an option, and the words without it."""
    value, rest, iterator = None, [], iter(words)
    for word in iterator:
        if word == option:
            value = next(iterator, "")
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return value, rest
