"""What `eagleray jobs` shows and does of jobs that were submitted to a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eagleray.cli.console import Console
from eagleray.cli.remote import follow_job, has_records, jobs_on, new_job_name, print_logs
from eagleray.core.settings import Settings

if TYPE_CHECKING:  # help must answer at once
    from collections.abc import Sequence

    from eagleray.clusters.remote_jobs import RemoteJob

__all__ = [
    "attach_submitted",
    "cancel_submitted",
    "facts_of",
    "list_submitted",
    "print_submitted_logs",
    "recorded_jobs",
    "retry_submitted",
    "show_submitted",
    "table_of",
]


def list_submitted(cluster: str | None, console: Console) -> None:
    """List the jobs that were submitted to a cluster, newest first."""
    jobs = jobs_on(cluster).jobs()
    if console.for_scripts:
        console.emit([facts_of(job) for job in jobs])
    elif jobs:
        table_of(jobs, console, title=f"Jobs on {cluster}")
    else:
        console.say(f"No job was submitted to {cluster} yet.")


def recorded_jobs(settings: Settings) -> list[RemoteJob]:
    """Return the submitted jobs that the database of this machine has; none without a database."""
    return jobs_on(None).jobs() if has_records(settings) else []


def table_of(jobs: Sequence[RemoteJob], console: Console, *, title: str) -> None:
    """Print a table of submitted jobs."""
    rows = [
        [
            *(job.name, job.state, str(job.details.get("position") or "")),
            *(str(job.details.get("priority", "")), job.user, _progress(job)),
            *(_minute(job.created), job.command),
        ]
        for job in jobs
    ]
    columns = ["job", "state", "queue", "priority", "user", "done", "submitted", "command"]
    console.table(title, columns, rows)


def _progress(job: RemoteJob) -> str:
    done, total = job.details.get("done"), job.details.get("total")
    return f"{done:,}/{total:,}" if total else ""


def show_submitted(cluster: str | None, name: str, console: Console) -> None:
    """Show a submitted job."""
    from eagleray.clusters.remote_jobs import find_job

    facts = facts_of(find_job(jobs_on(cluster), name))
    if console.for_scripts:
        console.emit(facts)
        return
    shown = {key: value for key, value in facts.items() if value not in (None, "")}
    console.facts(f"Job {facts['job']}", shown)


def print_submitted_logs(cluster: str | None, name: str) -> None:
    """Print what a submitted job has printed so far."""
    from eagleray.clusters.remote_jobs import find_job

    jobs = jobs_on(cluster)
    print_logs(jobs.logs(find_job(jobs, name).name))


def attach_submitted(cluster: str | None, name: str) -> int:
    """Show a submitted job until it ends, and return its exit code."""
    from eagleray.clusters.remote_jobs import find_job

    jobs = jobs_on(cluster)
    return follow_job(jobs, find_job(jobs, name).name, cluster=cluster or "NAME")


def cancel_submitted(cluster: str | None, name: str, console: Console) -> None:
    """Stop a submitted job."""
    from eagleray.clusters.remote_jobs import find_job

    jobs = jobs_on(cluster)
    job = find_job(jobs, name)
    if job.state.has_ended:
        console.say(f"Job {job.name} has ended already: {job.state}.")
        return
    jobs.stop(job.name)
    console.say(
        f"Job {job.name} is asked to stop; what is finished is kept. `eagleray jobs retry "
        f"{job.name} --cluster {cluster or 'NAME'}` resumes it."
    )


def retry_submitted(cluster: str | None, name: str) -> int:
    """Run the command of a job that has ended once more, and show it."""
    from eagleray.clusters.remote_jobs import find_job

    jobs = jobs_on(cluster)
    job = find_job(jobs, name)
    again = jobs.retry(job, name=new_job_name(job.name.rpartition("-")[0]))
    note = f"Job {again} is submitted, with the command of {job.name}."
    return follow_job(jobs, again, cluster=cluster or "NAME", note=note)


def _minute(iso_time: str) -> str:
    return iso_time[:16].replace("T", " ")


def facts_of(job: RemoteJob) -> dict[str, Any]:
    """Return what is known of a submitted job, by name."""
    return {
        "job": job.name,
        "state": job.state,
        "created": job.created,
        "user": job.user,
        "command": job.command,
        "message": job.message,
        **job.details,
        "exit_code": job.exit_code,
    }
