"""What the command lines of all jobs share: options, and the session that a job runs in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from eagleray.cli.console import quiet_terminal
from eagleray.cluster import Cluster, ray_session
from eagleray.settings import Settings

__all__ = ["ClusterOption", "JsonOption", "VerboseOption", "job_session", "run_job"]

ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", help="Ray cluster to run on; default: a Ray of its own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Show what Ray and the workers print.")
]


def run_job(main: Callable[..., None], *, module_docstring: str | None) -> None:
    """Run a job's `main` with the words of the command line.

    Args:
        main: Its parameters are the options, its docstring says what it does.
        module_docstring: Of the job's file; its lines that begin with `eagleray` become the
            examples of `--help`, and name the command.
    """
    lines = [line.strip() for line in (module_docstring or "").splitlines()]
    examples = [line for line in lines if line.startswith("eagleray ")]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog="\n\n".join(["Examples:", *examples]))(main)
    app(prog_name=" ".join(examples[0].split()[:2]))


@contextlib.contextmanager
def job_session(
    settings: Settings, *, address: str | None = None, verbose: bool = False
) -> Iterator[Cluster]:
    """Give a job its Ray, and keep the terminal for the job.

    Raises:
        UserError: The named cluster does not answer.
    """
    with (
        quiet_terminal(settings.native_log, verbose=verbose),
        ray_session(settings, address=address, verbose=verbose) as cluster,
    ):
        yield cluster
