"""`eagleray jobs …`: lists, shows, pauses and cancels jobs, of this home or of a cluster."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eagleray.cli.common import JsonOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.remote import has_records, jobs_on
from eagleray.cli.submitted import (
    attach_submitted,
    cancel_submitted,
    facts_of,
    list_submitted,
    print_submitted_logs,
    recorded_jobs,
    retry_submitted,
    show_submitted,
    table_of,
)
from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings, read_settings

if TYPE_CHECKING:  # help must answer at once
    from eagleray.sharded.history import JobStatus

__all__ = ["jobs_app"]

jobs_app = typer.Typer(
    help="Jobs of this home, or with --cluster of a cluster: list, show, cancel.\n\n"
    "eagleray jobs list\n\n"
    "eagleray jobs show 3f9c\n\n"
    "eagleray jobs report results/\n\n"
    "eagleray jobs cancel 3f9c\n\n"
    "eagleray jobs attach predict-3f9c2a71 --cluster gpus",
    no_args_is_help=True,
)

JobName = Annotated[
    str,
    typer.Argument(help="Id of a job, the first characters of one, or its output.", metavar="JOB"),
]


OnCluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Cluster that it was submitted to; default: this home folder and its database.",
    ),
]


@jobs_app.command("list")
def list_all(cluster: OnCluster = None, json_output: JsonOption = False) -> None:
    """List the jobs that were started from this home folder, newest first."""
    from eagleray.sharded.history import list_jobs

    with command_errors():
        console = Console(json_output=json_output)
        if cluster is not None:
            list_submitted(cluster, console)
            return
        settings = _settings()
        jobs, submitted = list_jobs(settings), recorded_jobs(settings)
        if json_output:
            console.emit([*map(_facts, jobs), *map(facts_of, submitted)])
            return
        if submitted:
            table_of(submitted, console, title="Submitted jobs")
        if not jobs and submitted:
            return
        if not jobs:
            console.say(
                "No job was started here yet: `eagleray predict` and `eagleray pack` start one."
            )
            return
        rows = [
            [
                job.job_id,
                job.plan.kind if job.plan else "",
                job.state,
                f"{job.num_done:,}/{job.num_rows:,}",
                f"{job.num_failed:,}",
                job.plan.work.get("model", "") if job.plan else "",
                job.created[:16].replace("T", " "),
                job.output,
            ]
            for job in jobs
        ]
        columns = ["job", "kind", "state", "images", "failed", "model", "created", "output"]
        console.table("Jobs", columns, rows)


@jobs_app.command("show")
def show_job(name: JobName, cluster: OnCluster = None, json_output: JsonOption = False) -> None:
    """Show the progress of a job, its plan, and its failures."""
    with command_errors():
        console = Console(json_output=json_output)
        if _is_submitted(name, cluster):
            show_submitted(cluster, name, console)
            return
        job = _find(name)
        facts = _facts(job)
        if job.state == JobState.SUCCEEDED:
            facts["reasons"] = job.reasons
        if json_output:
            console.emit(facts)
            return
        if job.plan is not None:
            facts |= job.plan.describe()
        shown = {
            key: ", ".join(f"{reason}: {count:,}" for reason, count in value.items())
            if isinstance(value, dict)
            else value
            for key, value in facts.items()
        }
        console.facts(f"Job {job.job_id}", {k: v for k, v in shown.items() if v not in (None, "")})


@jobs_app.command("report")
def open_report(name: JobName) -> None:
    """Print the location of the report of a finished job."""
    from eagleray.core.errors import InputError
    from eagleray.io import storage
    from eagleray.sharded.layout import OutputLayout

    with command_errors():
        job = _find(name)
        if job.plan is not None and job.plan.kind == "pack":
            raise InputError(f"Job {job.job_id} packs images, and packing makes no page.")
        page = OutputLayout(job.output).report
        if not storage.exists(page):
            raise InputError(
                f"Job {job.job_id} is {job.state} and has no report yet; it is written when the "
                "job ends."
            )
        Console().say(page)


@jobs_app.command("cancel")
def cancel(name: JobName, cluster: OnCluster = None) -> None:
    """Ask a running job to stop; finished shards are kept, and its command resumes it."""
    from eagleray.sharded.history import cancel_job

    with command_errors():
        if _is_submitted(name, cluster):
            cancel_submitted(cluster, name, Console())
            return
        job = _find(name)
        cancel_job(job)
        Console().say(
            f"Job {job.job_id} is asked to stop; finished shards are kept. Its command resumes it."
        )


@jobs_app.command("pause")
def pause(name: JobName) -> None:
    """Have a job of predict or pack end its workers after their shards, until it is resumed."""
    from eagleray.sharded.history import pause_job

    with command_errors():
        job = _find(name)
        pause_job(job)
        Console().say(
            f"Job {job.job_id} is asked to yield its workers when their shards are done; "
            f"`eagleray jobs resume {job.job_id}` lets it go on."
        )


@jobs_app.command("resume")
def resume(name: JobName) -> None:
    """Let a paused job go on."""
    from eagleray.sharded.history import resume_job

    with command_errors():
        job = _find(name)
        resume_job(job)
        Console().say(f"Job {job.job_id} goes on as soon as no other job goes first.")


@jobs_app.command("logs")
def logs(name: JobName, cluster: OnCluster = None) -> None:
    """Print what a job on a cluster has printed so far."""
    with command_errors():
        print_submitted_logs(cluster, name)


@jobs_app.command("attach")
def attach(name: JobName, cluster: OnCluster = None) -> None:
    """Show a job on a cluster until it ends, from its beginning; Ctrl-C leaves it running."""
    with command_errors():
        code = attach_submitted(cluster, name)
    raise typer.Exit(code)


@jobs_app.command("retry")
def retry(name: JobName, cluster: OnCluster = None) -> None:
    """Submit the command of a job that has ended once more; what is finished is kept."""
    with command_errors():
        code = retry_submitted(cluster, name)
    raise typer.Exit(code)


def _is_submitted(name: str, cluster: str | None) -> bool:
    """Whether a job was submitted to a cluster, and not started from this home folder."""
    from eagleray.clusters.remote_jobs import find_job
    from eagleray.core.errors import UnknownNameError
    from eagleray.sharded.history import find_job as find_own

    settings = _settings()
    if cluster is not None or not has_records(settings):
        return cluster is not None
    try:
        find_own(settings, name)
    except UnknownNameError:
        with contextlib.suppress(UnknownNameError):
            find_job(jobs_on(None), name)
            return True
    return False


def _find(name: str) -> JobStatus:
    """Find a job, and reach S3 as it does from here on."""
    from eagleray.io import storage
    from eagleray.sharded.history import find_job

    job = find_job(_settings(), name)
    storage.use_s3(job.s3)
    return job


def _settings() -> Settings:
    """Read the settings, and reach S3 as they say: outputs may be there."""
    from eagleray.io import storage
    from eagleray.io.spec_fields import S3Fields

    settings = read_settings()
    storage.use_s3(S3Fields().with_settings(settings).s3)
    return settings


def _facts(job: JobStatus) -> dict[str, Any]:
    progress = job.progress if job.state == JobState.RUNNING else None
    return {
        "job": job.job_id,
        "kind": job.plan.kind if job.plan else None,
        "state": job.state,
        "output": job.output,
        "created": job.created,
        "images": job.num_rows,
        "done": job.num_done,
        "failed": job.num_failed,
        "images_per_second": progress.images_per_second if progress else None,
        "seconds_left": progress.seconds_left if progress else None,
        "message": job.message,
    }
