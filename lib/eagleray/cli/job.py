"""What the command lines of all jobs share: options, and the session that a job runs in."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from eagleray.cli.console import open_streams, quiet_terminal
from eagleray.core.environment import bypass_proxy_for_loopback, ray_temporary_folder
from eagleray.core.file_names import escape_file_name
from eagleray.core.ray_session import Cluster, ray_session
from eagleray.core.settings import Settings, read_settings

__all__ = [
    "ClusterOption",
    "JsonOption",
    "VerboseOption",
    "job_session",
    "job_settings",
    "run_command",
]

ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", help="Ray cluster to run on; default: a Ray of its own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Show what Ray and the workers print.")
]


def run_command(main: Callable[..., None], *, module_docstring: str | None) -> None:
    """Run a job's `main` with the words of the command line.

    Args:
        main: Its parameters are the options, its docstring says what it does.
        module_docstring: Of the job's file; its lines that begin with `eagleray` become the
            examples of `--help`, and name the command.
    """
    open_streams()
    bypass_proxy_for_loopback()
    lines = [line.strip() for line in (module_docstring or "").splitlines()]
    examples = [line for line in lines if line.startswith("eagleray ")]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog="\n\n".join(["Examples:", *examples]))(main)
    words = [escape_file_name(word) for word in sys.argv[1:]]  # the shell passes any bytes on
    app(words, prog_name=" ".join(examples[0].split()[:2]))


def job_settings(*, cluster: str | None = None) -> Settings:
    """Read the settings of a job, and check the folders that it needs before any work is done.

    Args:
        cluster: The Ray cluster that is named on the command line, if any.

    Raises:
        UserError: The home folder, or the temporary folder of a Ray of its own, cannot be used.
    """
    settings = read_settings()
    settings.make_home()
    if cluster is None and settings.ray_address is None:
        ray_temporary_folder()
    return settings


@contextlib.contextmanager
def job_session(
    settings: Settings,
    *,
    address: str | None = None,
    verbose: bool = False,
    batches_at_once: int = 0,
) -> Iterator[Cluster]:
    """Give a job its Ray, as `ray_session` does, and keep the terminal for the job.

    Raises:
        UserError: The named cluster does not answer, or a folder that is needed cannot be written.
        JobFailedError: No Ray starts on this machine.
    """
    with (
        quiet_terminal(settings.native_log, verbose=verbose),
        ray_session(
            settings, address=address, verbose=verbose, batches_at_once=batches_at_once
        ) as cluster,
    ):
        yield cluster
