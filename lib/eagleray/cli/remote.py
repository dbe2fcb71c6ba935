"""Runs a command on a cluster that this machine is no node of, if its words name one."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from eagleray.core.errors import ExitCode, OutageError
from eagleray.core.settings import read_settings

if TYPE_CHECKING:  # commands that stay here start at once
    from eagleray.clusters.job_server import JobServer
    from eagleray.clusters.profiles import ClusterProfile

__all__ = ["follow_job", "job_server_of", "run_on_cluster"]

_FLAG: Final = "--cluster"
_DETACH: Final = "--detach"
_STAYS_HERE: Final = frozenset({"demo", "run"})  # the demo, and the service


def run_on_cluster(module: str, words: Sequence[str]) -> list[str]:
    """Submit a command if its cluster is reached from outside; else return its words.

    Args:
        module: Module of the program.
        words: Its command line.

    Returns:
        The words with the address of the cluster instead of its name. A command that was submitted
        does not return: it exits with the exit code of its job, or with 0 if it is detached.

    Raises:
        UserError: If the cluster or an input cannot be reached.
    """
    program = module.rpartition(".")[2]
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
    cluster = named or settings.ray_address or ClusterProfiles.read(settings).used or ""
    _submit(profile, module, program, rest, cluster)
    raise AssertionError("unreachable")


def job_server_of(named: str) -> JobServer:
    """Return the job server of a cluster that is named on the command line.

    Raises:
        UserError: If the cluster is unknown, is not reached from outside, or does not answer.
    """
    from eagleray.clusters.profiles import resolve_cluster
    from eagleray.clusters.submission import connect
    from eagleray.core.errors import InputError

    profile = resolve_cluster(named, read_settings())
    if profile is None or profile.url is None:
        raise InputError(
            f"{named} is not reached through a job server; name a cluster with an address such as "
            "ray-jobs+https://HEAD."
        )
    return connect(profile)


def follow_job(server: JobServer, name: str, *, cluster: str, note: str = "") -> int:
    """Show a job until it ends; an interrupt leaves it running and says so.

    Args:
        server: The job server.
        name: Name of the job.
        cluster: Name or address of the cluster, for what is said.
        note: Said first.

    Returns:
        The exit code of the job, or 130 if its output is no longer shown.

    Raises:
        OutageError: If the job server does not answer for a minute.
    """
    from eagleray.cli.console import Console
    from eagleray.clusters.submission import print_until_end

    console = Console(json_output=True)  # standard output is the job's
    goes_on = (
        f"Job {name} goes on without this terminal: `eagleray jobs attach {name} --cluster "
        f"{cluster}` shows it, `eagleray jobs cancel {name} --cluster {cluster}` ends it."
    )
    try:
        if note:
            console.announce(note)
        return print_until_end(server, name)
    except KeyboardInterrupt:
        console.announce(goes_on)
        return ExitCode.INTERRUPTED
    except OutageError:
        console.announce(goes_on)
        raise


def _submit(
    profile: ClusterProfile, module: str, program: str, words: list[str], cluster: str
) -> None:
    from eagleray.cli.console import Console
    from eagleray.clusters.submission import connect, submit

    detached = _DETACH in words
    words = [word for word in words if word != _DETACH]
    parameters = _parse(module, words)
    settings = read_settings()
    server = connect(profile)
    name = new_job_name(program)
    submit(server, program, words, parameters, user=settings.actor, name=name)
    note = f"Job {name} is submitted to {cluster}."
    if detached:
        Console().announce(note)
        raise SystemExit(ExitCode.OK)
    raise SystemExit(follow_job(server, name, cluster=cluster, note=note))


def new_job_name(program: str) -> str:
    """Return a name for a submitted job."""
    import secrets

    return f"{program}-{secrets.token_hex(4)}"


def _parse(module: str, words: Sequence[str]) -> dict[str, Any]:
    """Parse a command line as its program does; a mistake ends this process as it would there."""
    import typer.main

    from eagleray.cli.job import command_app

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
    return parameters


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
