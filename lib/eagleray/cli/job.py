"""Runs a job from its command line: its words, its settings, and its Ray session."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

import typer

from eagleray.cli.console import open_streams, quiet_terminal
from eagleray.core.cluster_address import require_node_address
from eagleray.core.environment import bypass_proxy_for_loopback, ray_temporary_folder
from eagleray.core.file_names import escape_file_name
from eagleray.core.job_channel import process_channel, process_is_held
from eagleray.core.logs import use_log_format
from eagleray.core.ray_session import Cluster, ray_session
from eagleray.core.settings import Settings, read_settings
from eagleray.core.yielding import ADMISSION, process_signal

__all__ = [
    "command_app",
    "job_session",
    "job_settings",
    "run_command",
]


def run_command(main: Callable[..., None], *, module_docstring: str | None) -> None:
    """Run a job's `main` with the words of the command line.

    Args:
        main: Function whose parameters are the options, and whose docstring is the summary.
        module_docstring: Docstring of the job's file; see `command_app`.
    """
    _heed_requests()
    open_streams()
    bypass_proxy_for_loopback()
    app, name = command_app(main, module_docstring=module_docstring)
    words = [escape_file_name(word) for word in sys.argv[1:]]  # the shell passes any bytes on
    app(words, prog_name=name)


def _heed_requests() -> None:
    """Heed the requests of the process that runs this command on a cluster, if one does."""
    channel = process_channel()  # takes its socket before another process is started
    asked = process_signal()
    if process_is_held():
        asked.request(ADMISSION)
    channel.listen(
        on_yield=asked.request,
        on_resume=asked.clear,
        on_start=lambda: asked.clear(ADMISSION),
    )


def command_app(
    main: Callable[..., None], *, module_docstring: str | None
) -> tuple[typer.Typer, str]:
    """Return the command line of a job, and the name of its command.

    Args:
        main: Function whose parameters are the options, and whose docstring is the summary.
        module_docstring: Docstring of the job's file; its lines that begin with `eagleray` are the
            examples of `--help`, and name the command.
    """
    lines = [line.strip() for line in (module_docstring or "").splitlines()]
    examples = [line for line in lines if line.startswith("eagleray ")]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog="\n\n".join(["Examples:", *examples]))(main)
    return app, " ".join(examples[0].split()[:2])


def job_settings(*, cluster: str | None = None) -> Settings:
    """Read the settings of a job, and check the folders that it needs.

    Args:
        cluster: Ray cluster that the command line names; None for a Ray of the command's own.

    Raises:
        UserError: If the home folder, the temporary folder of Ray, or the address of the cluster
            cannot be used.
    """
    settings = read_settings()
    use_log_format(settings)
    settings.make_home()
    address = cluster or settings.ray_address
    if address is None:
        ray_temporary_folder()
    else:
        require_node_address(address)
    return settings


@contextlib.contextmanager
def job_session(
    settings: Settings,
    *,
    address: str | None = None,
    verbose: bool = False,
    with_job_server: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
    preload: Sequence[str] = (),
) -> Iterator[Cluster]:
    """Provide the Ray of a job as `ray_session` does, without Ray's output on the terminal.

    Raises:
        UserError: If the named cluster does not answer, or a folder cannot be written.
        JobFailedError: If no Ray starts on this machine.
    """
    with (
        quiet_terminal(settings.native_log, verbose=verbose),
        ray_session(
            settings,
            address=address,
            verbose=verbose,
            with_job_server=with_job_server,
            meanwhile=meanwhile,
            preload=preload,
        ) as cluster,
    ):
        yield cluster
