"""What `eagleray jobs` shows and does of jobs that were submitted to a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eagleray.cli.console import Console
from eagleray.cli.remote import follow_job, job_server_of, new_job_name

if TYPE_CHECKING:  # help must answer at once
    from eagleray.clusters.job_server import JobServer, SubmittedJob

__all__ = [
    "attach_submitted",
    "cancel_submitted",
    "list_submitted",
    "print_logs",
    "retry_submitted",
    "show_submitted",
]


def list_submitted(cluster: str, console: Console) -> None:
    """List the jobs that were submitted to a cluster, newest first."""
    facts = [_facts(job) for job in job_server_of(cluster).jobs()]
    facts = [each for each in facts if each["command"]]  # others may run there too
    if console.for_scripts:
        console.emit(facts)
        return
    if not facts:
        console.say(f"No job was submitted to {cluster} yet.")
        return
    rows = [
        [
            *(each[key] for key in ("job", "state", "user")),
            _minute(each["created"]),
            each["command"],
        ]
        for each in facts
    ]
    console.table(f"Jobs on {cluster}", ["job", "state", "user", "submitted", "command"], rows)


def show_submitted(cluster: str, name: str, console: Console) -> None:
    """Show a submitted job."""
    facts = _facts(_find(job_server_of(cluster), name))
    if console.for_scripts:
        console.emit(facts)
        return
    shown = {key: value for key, value in facts.items() if value not in (None, "")}
    console.facts(f"Job {facts['job']}", shown)


def print_logs(cluster: str, name: str, console: Console) -> None:
    """Print what a submitted job has printed so far."""
    from eagleray.clusters.run import OUTPUT_MARK

    server = job_server_of(cluster)
    text = server.logs(_find(server, name).name)
    for line in text.splitlines():
        console.say(line.removeprefix(OUTPUT_MARK))


def attach_submitted(cluster: str, name: str) -> int:
    """Show a submitted job until it ends, and return its exit code."""
    server = job_server_of(cluster)
    return follow_job(server, _find(server, name).name, cluster=cluster)


def cancel_submitted(cluster: str, name: str, console: Console) -> None:
    """Stop a submitted job."""
    server = job_server_of(cluster)
    job = _find(server, name)
    if job.state.has_ended:
        console.say(f"Job {job.name} has ended already: {job.state}.")
        return
    server.stop(job.name)
    console.say(
        f"Job {job.name} is asked to stop; what is finished is kept. `eagleray jobs retry "
        f"{job.name} --cluster {cluster}` resumes it."
    )


def retry_submitted(cluster: str, name: str) -> int:
    """Submit the command of a job that has ended once more, and show it."""
    from eagleray.clusters.submission import resubmit

    server = job_server_of(cluster)
    job = _find(server, name)
    again = new_job_name(job.name.rpartition("-")[0])
    resubmit(server, job, name=again)
    note = f"Job {again} is submitted, with the command of {job.name}."
    return follow_job(server, again, cluster=cluster, note=note)


def _find(server: JobServer, name: str) -> SubmittedJob:
    """Return the job of a name, or of the first characters of one."""
    from eagleray.core.errors import UnknownNameError

    try:
        return server.job(name)
    except UnknownNameError:
        found = [job for job in server.jobs() if job.name.startswith(name)]
        if len(found) == 1 and name:
            return found[0]
        raise


def _minute(iso_time: str) -> str:
    return iso_time[:16].replace("T", " ")


def _facts(job: SubmittedJob) -> dict[str, Any]:
    import shlex

    from eagleray.clusters.submission import Submission

    submission = Submission.of(job)
    return {
        "job": job.name,
        "state": job.state,
        "created": job.created,
        "user": submission.user if submission else "",
        "command": shlex.join(["eagleray", submission.program, *submission.words])
        if submission
        else "",
        "version": submission.version if submission else "",
        "exit_code": job.exit_code,
    }
