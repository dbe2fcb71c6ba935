"""The `eagleray` command.

Each job, and the service, is a program of its own, which the command executes: `eagleray train …`
becomes `python -m eagleray.jobs.train …` with the same words. A program declares its own options,
once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

import eagleray
from eagleray.cli.apps import apps_app
from eagleray.cli.cluster import cluster_app
from eagleray.cli.console import command_errors, open_streams
from eagleray.cli.jobs import jobs_app
from eagleray.cli.models import models_app
from eagleray.cli.remote import run_on_cluster
from eagleray.cli.supervise import supervise_jobs
from eagleray.core.errors import UserError
from eagleray.core.file_names import escape_file_name

__all__ = ["PROGRAMS", "app", "main"]

app = typer.Typer(
    name="eagleray",
    help="Image models at scale: batch, training and serving on one model.\n\n"
    "eagleray demo\n\n"
    "eagleray train flowers/ --name flowers --architecture resnet18 --workers 2\n\n"
    "eagleray evaluate flowers@candidate flowers-test/ --kpi kpi.txt\n\n"
    "eagleray predict photos/ --model flowers@candidate --output results/\n\n"
    "eagleray serve flowers\n\n"
    "eagleray jobs list\n\n"
    "eagleray models list",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(apps_app, name="apps")
app.add_typer(cluster_app, name="cluster")
app.add_typer(jobs_app, name="jobs")
app.add_typer(models_app, name="models")
app.command("supervise")(supervise_jobs)

_PASS_EVERYTHING_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}

PROGRAMS = {
    name: f"eagleray.jobs.{name}"
    for name in (
        *("inspect", "convert", "train", "tune", "evaluate", "explain", "predict", "pack"),
        *("doctor", "demo"),
    )
} | {"serve": "eagleray.serve.run", "gateway": "eagleray.serve.gateway.run"}
"""The module of each command that is a program of its own."""

_SUMMARIES = {
    "inspect": "Inspect labelled images before training: a split and a page.",
    "convert": "Convert labels of objects from one format to another.",
    "train": "Train a model on several workers and register it.",
    "tune": "Try many specifications, stop the poor ones early, register the best.",
    "evaluate": "Measure a model on labelled images: metrics, KPIs and a page.",
    "explain": "Explain what a classifier predicts: heat maps on a page.",
    "predict": "Predict images in batch: a table and a page.",
    "pack": "Pack many small files into few large ones, with a manifest.",
    "doctor": "Check that this machine, or every node of a cluster, reaches what jobs need.",
    "demo": "See it work: digits, good and broken, from training to the service.",
    "serve": "Answer requests for registered models: HTTP, gRPC and a page.",
    "gateway": "Receive the requests of a service whose replicas a cluster declares.",
}


def _launch(name: str, module: str, arguments: list[str]) -> None:
    """Become the program: signals, terminal and exit code are then its own."""
    with command_errors():
        _require_program(module)
        arguments = run_on_cluster(name, module, arguments)
    # -P: no file of the user's folder is taken for a module of a program.
    command = [sys.executable, "-P", "-m", "eagleray.cli.launch", module, *arguments]
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606


def _require_program(module: str) -> None:
    """Refuse a checkout whose links to the programs are plain files.

    Raises:
        UserError: With how to clone it.
    """
    package = Path(eagleray.__file__).with_name(module.split(".")[1])
    if not package.is_dir():
        raise UserError(
            f"{package} should be a link to a folder and is none: this checkout was made without "
            "symbolic links; clone it again with `git clone -c core.symlinks=true`."
        )


def _add_program(name: str, module: str, summary: str) -> None:
    @app.command(name, help=summary, context_settings=_PASS_EVERYTHING_ON)
    def launch(context: typer.Context) -> None:
        _launch(name, module, context.args)


for _name, _module in PROGRAMS.items():
    _add_program(_name, _module, _SUMMARIES[_name])


def main() -> None:
    """Entry point of the console command."""
    open_streams()
    app([escape_file_name(word) for word in sys.argv[1:]])  # the shell passes any bytes on
