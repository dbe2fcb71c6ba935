"""Runs a training job: inspect the data, train, test once and register a version."""

from __future__ import annotations

from collections.abc import Sequence

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import resumable
from eagleray.core.logs import add_to_lines
from eagleray.core.ray_session import Cluster
from eagleray.data.page import render_data_report
from eagleray.data.report import DataReport
from eagleray.data.split_file import write_split
from eagleray.io import storage
from eagleray.training.callback import CallbackList, TrainCallback
from eagleray.training.fit import fit
from eagleray.training.inspection import inspect_data, keep_duplicates_together
from eagleray.training.prepare import TrainJob
from eagleray.training.registration.register import register_model
from eagleray.training.report import extension_warning, overfit_warning, render_training_page
from eagleray.training.runs import Run, RunRecord, create_run
from eagleray.training.summary import TrainSummary
from eagleray.training.tracking import log_description, log_pages, log_result, track_run

__all__ = ["open_run", "run_job", "start_run"]


def run_job(
    job: TrainJob,
    cluster: Cluster,
    reporter: ProgressReporter,
    callbacks: Sequence[TrainCallback] = (),
) -> TrainSummary:
    """Inspect the data, train, test once and register a version."""
    called = CallbackList(callbacks)
    job = keep_duplicates_together(job, cluster, reporter)
    plan, report = inspect_data(job, cluster, reporter)
    run, record = start_run(job, report, reporter)
    called.start(run)
    with (
        resumable(f"eagleray train --resume {run.name}"),
        track_run(
            job.registry, job.spec, run.name, kind="train", run=run, run_id=record.mlflow_run
        ) as tracked,
    ):
        run.write(record.model_copy(update={"mlflow_run": tracked.run_id}))
        log_description(tracked, job, plan, cluster)
        log_pages(tracked, run, "data")
        for file in (run.spec_file, run.split_file):
            tracked.log_file(file)
        result, skipped = fit(
            job, plan, run, cluster, reporter, tracked.log_epoch, callbacks=called
        )
        log_result(tracked, job.spec, result, plan.extensions)
        with reporter.status("Testing and registering"):
            registered = register_model(job, plan, tracked, run, result)
        page = render_training_page(
            job.spec, run.name, result, plan.monitor, plan.extensions, registered.warnings
        )
        storage.put_atomic(run.page("training"), page)
        log_pages(tracked, run, "training", "evaluation")
        version = registered.version.reference
        run.write(record.model_copy(update={"mlflow_run": tracked.run_id, "version": version}))
    if registered.alias.moved:
        reporter.note(registered.alias.reason)
    found = (
        *registered.warnings,
        overfit_warning(result.epochs, plan.monitor),
        extension_warning(result, plan.extensions),
    )
    own = tuple(warning for warning in found if warning is not None)
    for warning in own:
        reporter.warn(warning)
    faults = (*report.unreadable, *skipped)
    warnings = (*report.warnings, *own)
    summary = TrainSummary(run, registered, warnings, report.notes, result, plan.monitor, faults)
    called.end(summary)
    return summary


def start_run(
    job: TrainJob, report: DataReport, reporter: ProgressReporter
) -> tuple[Run, RunRecord]:
    """Open the run of a job, and write the page of its data."""
    run, record = open_run(job)
    add_to_lines(job_id=run.name)
    reporter.announce(f"run {run.name}, in {run.folder}")
    about = {"data": job.spec.data, "run": run.name}
    if job.plan.task.positive is not None:
        about["positive label"] = job.plan.task.positive
    page = render_data_report(report, about, title=f"Data of {run.name}")
    storage.put_atomic(run.page("data"), page)
    return run, record


def open_run(job: TrainJob) -> tuple[Run, RunRecord]:
    """Return the run to resume, or create one with the specification and the split."""
    if job.run is not None:
        return job.run, _extend(job, job.run)
    run = create_run(job.settings, job.spec)
    digest = job.plan.data_digest
    write_split(
        job.plan.split,
        run.split_file,
        data_digest=digest,
        seed=job.spec.seed,
        attributes=job.spec.attributes,
    )
    record = RunRecord(run=run.name, data_digest=digest, alias=job.alias, force=job.force)
    run.write(record)
    return run, record


def _extend(job: TrainJob, run: Run) -> RunRecord:
    """Return the record of a resumed run, after it has recorded a new extension of the run.

    The extended run has a version and an MLflow run of its own: those of the run before stay.
    """
    record = run.read()
    if record.extensions == job.plan.extensions:
        return record
    job.registry.end_interrupted_run(record.mlflow_run)
    update = {"extensions": job.plan.extensions, "version": None, "mlflow_run": None}
    record = record.model_copy(update=update)
    run.write(record)  # first: the specification is for people, and follows the record
    run.write_spec(job.spec)
    return record
