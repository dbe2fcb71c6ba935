"""Runs a training job: inspect the data, train, test once and register a version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import resumable
from eagleray.core.ray_session import Cluster
from eagleray.data.inspection import Fault
from eagleray.data.page import render_data_report
from eagleray.data.report import DataReport
from eagleray.data.split_file import write_split
from eagleray.evaluation.bootstrap import bootstrap
from eagleray.evaluation.report import render_evaluation
from eagleray.evaluation.slices import choose_columns, slice_metrics
from eagleray.io import storage
from eagleray.registry.registry import ModelVersion
from eagleray.registry.tracking import TrackedRun
from eagleray.training.callback import CallbackList, TrainCallback
from eagleray.training.fit import fit
from eagleray.training.inspection import inspect_data
from eagleray.training.monitor import Monitor
from eagleray.training.packaging import FinishedModel, finish_again, finish_model
from eagleray.training.plan import TrainPlan
from eagleray.training.prepare import TrainJob
from eagleray.training.report import extension_warning, overfit_warning, render_training_page
from eagleray.training.result import TrainResult
from eagleray.training.runs import Run, RunRecord, create_run
from eagleray.training.tracking import log_description, log_pages, log_result, track_run

__all__ = [
    "TrainSummary",
    "model_summary",
    "open_run",
    "register_model",
    "run_job",
    "start_run",
]


@dataclass(frozen=True)
class TrainSummary:
    """Summary of a finished training job."""

    run: Run
    version: ModelVersion
    tested: FinishedModel
    result: TrainResult
    monitor: Monitor
    skipped: tuple[Fault, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the test split, such as `accuracy`."""
        return self.tested.evaluation.metrics

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {
            **model_summary(self.version, self.tested),
            "validation": self.result.metrics,
            "best_epoch": self.result.best.epoch,
            "monitor": self.monitor.metric,
            "mode": self.monitor.mode,
            "epochs": list(self.result.epochs),
            "skipped": [
                {"uri": fault.uri, "reason": fault.reason.value, "message": fault.message}
                for fault in self.skipped
            ],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "run": self.run.name,
            "folder": self.run.folder,
            "mlflow_run": self.version.run_id,
        }


def model_summary(version: ModelVersion, tested: FinishedModel) -> dict[str, Any]:
    """Return a registered version and its test metrics as JSON values."""
    return {
        "model": version.reference,
        "aliases": list(version.aliases),
        "package_digest": version.digest,
        "test": tested.evaluation.metrics,
        "test_images": tested.evaluation.num_images,
        "test_images_failed": tested.evaluation.num_failed,
    }


def run_job(
    job: TrainJob,
    cluster: Cluster,
    reporter: ProgressReporter,
    callbacks: Sequence[TrainCallback] = (),
) -> TrainSummary:
    """Inspect the data, train, test once and register a version."""
    called = CallbackList(callbacks)
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
        page = render_training_page(job.spec, run.name, result, plan.monitor, plan.extensions)
        storage.put_atomic(run.page("training"), page)
        log_result(tracked, job.spec, result, plan.extensions)
        log_pages(tracked, run, "training")
        with reporter.status("Testing and registering"):
            tested, version = register_model(job, plan, tracked, run)
        run.write(
            record.model_copy(update={"mlflow_run": tracked.run_id, "version": version.reference})
        )
    found = (
        overfit_warning(result.epochs, plan.monitor),
        extension_warning(result, plan.extensions),
    )
    warnings = tuple(warning for warning in found if warning is not None)
    for warning in warnings:
        reporter.warn(warning)
    warnings = (*report.warnings, *warnings)
    faults = (*report.unreadable, *skipped)
    summary = TrainSummary(
        run, version, tested, result, plan.monitor, faults, warnings, report.notes
    )
    called.end(summary)
    return summary


def start_run(
    job: TrainJob, report: DataReport, reporter: ProgressReporter
) -> tuple[Run, RunRecord]:
    """Open the run of a job, and write the page of its data."""
    run, record = open_run(job)
    reporter.note(f"run {run.name}, in {run.folder}")
    about = {"data": job.spec.data, "run": run.name}
    page = render_data_report(report, about, title=f"Data of {run.name}")
    storage.put_atomic(run.page("data"), page)
    return run, record


def open_run(job: TrainJob) -> tuple[Run, RunRecord]:
    """Return the run to resume, or create one with the specification and the split."""
    if job.run is not None:
        return job.run, _extend(job, job.run)
    run = create_run(job.settings, job.spec)
    digest = job.plan.data_digest
    write_split(job.plan.split, run.split_file, data_digest=digest, seed=job.spec.seed)
    record = RunRecord(run=run.name, data_digest=digest, alias=job.alias)
    run.write(record)
    return run, record


def _extend(job: TrainJob, run: Run) -> RunRecord:
    """Return the record of a resumed run, after it has recorded a new extension of the run.

    The extended run has a version and an MLflow run of its own: those of the run before stay.
    """
    record = run.read()
    if record.extensions == job.plan.extensions:
        return record
    update = {"extensions": job.plan.extensions, "version": None, "mlflow_run": None}
    record = record.model_copy(update=update)
    run.write(record)  # first: the specification is for people, and follows the record
    run.write_spec(job.spec)
    return record


def register_model(
    job: TrainJob, plan: TrainPlan, tracked: TrackedRun, run: Run
) -> tuple[FinishedModel, ModelVersion]:
    """Test the model, register it as a version and write the page of the test.

    A resumed run that has registered a version does not register a second one.
    """
    cache = job.settings.cache_folder
    version = job.registry.version_of_run(tracked, job.spec.name)
    if version is None:
        tested = finish_model(plan, plan.module, cache_folder=cache, mlflow_run=tracked.run_id)
        version = job.registry.register(tested.package, run=tracked, alias=job.alias)
    else:
        tested = finish_again(plan, job.registry.load(version), cache_folder=cache)
        version = job.registry.set_first_alias(version, job.alias)
    job.registry.record_evaluation(version, tested.record)
    tracked.log_metrics(
        {f"test_{name}": value for name, value in tested.evaluation.headline.items()},
        step=job.spec.epochs,
    )
    storage.put_atomic(run.page("evaluation"), _evaluation_page(tested, version, run))
    log_pages(tracked, run, "evaluation")
    return tested, version


def _evaluation_page(tested: FinishedModel, version: ModelVersion, run: Run) -> bytes:
    evaluation = tested.evaluation
    return render_evaluation(
        evaluation,
        {
            "model": f"{version.reference} (package {version.digest[:12]})",
            "task": version.task,
            "architecture": version.architecture,
            "data": tested.record.data,
            "data digest": tested.record.data_digest,
            "run": run.name,
        },
        model_name=version.reference,
        intervals=bootstrap(evaluation.task, evaluation.outputs, evaluation.targets),
        slices=slice_metrics(evaluation, choose_columns(evaluation.images)),
    )
