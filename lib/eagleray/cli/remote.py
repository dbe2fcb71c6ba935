"""Runs a command on a cluster that this machine is no node of, if its words name one."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from eagleray.core.errors import ExitCode, InputError, OutageError
from eagleray.core.settings import Settings, read_settings

if TYPE_CHECKING:  # commands that stay here start at once
    from eagleray.clusters.profiles import ClusterProfile
    from eagleray.clusters.ray_jobs import RayJobs
    from eagleray.clusters.remote_jobs import LogText, RemoteCommand, RemoteJobs

__all__ = [
    "follow_job",
    "has_records",
    "jobs_on",
    "new_job_name",
    "print_logs",
    "run_on_cluster",
    "server_of",
]

_FLAG: Final = "--cluster"
_DETACH: Final = "--detach"
_STAYS_HERE: Final = frozenset({"convert", "demo", "serve", "gateway"})


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
    detached = _DETACH in rest
    priority, rest = _take_number(rest, "--priority", range(-100, 101))
    retries, rest = _take_number(rest, "--retries", range(101))
    command = _parse(program, module, [word for word in rest if word != _DETACH])
    command = replace(command, priority=priority, retries=retries)
    cluster = named or settings.ray_address or ClusterProfiles.read(settings).used or ""
    raise SystemExit(_submit(_connect(profile, named), command, cluster, detached=detached))


def has_records(settings: Settings) -> bool:
    """Whether this machine has a database that may hold the records of submitted jobs."""
    file = settings.home_folder / "eagleray.db"
    return settings.database_url is not None or file.exists()


def jobs_on(named: str | None) -> RemoteJobs:
    """Return the jobs of a cluster that is named on the command line.

    Args:
        named: Name or address; None for the records in the database of this machine.

    Raises:
        UserError: If the cluster is unknown, is not reached from outside, or does not answer.
    """
    from eagleray.clusters.profiles import resolve_cluster

    profile = resolve_cluster(named, read_settings())
    if named is None:
        if not has_records(read_settings()):
            raise InputError(
                "No jobs are recorded on this machine; name the cluster with --cluster, or set "
                "EAGLERAY_DATABASE_URL to the database that the cluster has."
            )
        return _recorded(None)
    if profile is None or profile.url is None:
        raise InputError(
            f"{named} is not reached from outside; name a cluster with an address such as "
            "https://SERVICE or ray-jobs+https://HEAD."
        )
    return _connect(profile, named)


def _connect(profile: ClusterProfile, named: str | None) -> RemoteJobs:
    """Return the jobs of a cluster: their records, if this machine shares the database."""
    from eagleray.clusters.connect import connect

    shared = (read_settings().database_url or "").startswith("postgres")
    return _recorded(named) if shared and not profile.is_service else connect(profile)


def server_of(named: str | None) -> Callable[[], RayJobs]:
    """Return a function that connects to the job server of a cluster.

    Args:
        named: Name or address; None for the cluster in use.

    Raises:
        UserError: If the cluster is unknown. The function raises one if there is no job server.
    """
    from eagleray.clusters.profiles import resolve_cluster

    settings = read_settings()
    resolve_cluster(named, settings)

    def connect() -> RayJobs:
        from eagleray.clusters.ray_jobs import RayJobs

        profile = resolve_cluster(named, settings)  # it may have another address by now
        if profile is None or profile.url is None or profile.is_service:
            raise InputError(
                "This needs the job server of a cluster; name one with --cluster, with an address "
                "such as ray-jobs+https://HEAD."
            )
        jobs = RayJobs(profile)
        jobs.facts()
        return jobs

    return connect


def _recorded(named: str | None) -> RemoteJobs:
    from eagleray.clusters.recorded_jobs import RecordedJobs
    from eagleray.database.store import open_database

    settings = read_settings()
    return RecordedJobs(open_database(settings), settings, server_of(named))


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


def _take_number(words: Sequence[str], option: str, allowed: range) -> tuple[int, list[str]]:
    """Return the value of an option that is a number, 0 without one, and the words without it.

    Raises:
        InputError: If the value is not allowed.
    """
    text, rest = _take_option(words, option)
    if text is None:
        return 0, rest
    number = int(text) if text.removeprefix("-").isdecimal() else None
    if number not in allowed:
        raise InputError(f"{option} takes a number from {allowed[0]} to {allowed[-1]}.")
    assert number is not None
    return number, rest


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
