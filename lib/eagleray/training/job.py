"""A training job from its specification to a registered version: look, train, test, register."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eagleray.core.callbacks import ProgressBar, ProgressReporter
from eagleray.core.errors import Reason
from eagleray.core.ray_session import Cluster
from eagleray.data.analysis import make_report
from eagleray.data.inspection import Fault, inspect_images, require_readable
from eagleray.data.labelled import join_images
from eagleray.data.page import render_data_report
from eagleray.data.report import DataReport
from eagleray.data.split import Split, fold_images, require_complete_split, split_images
from eagleray.data.split_file import write_split
from eagleray.evaluation.bootstrap import bootstrap
from eagleray.evaluation.report import render_evaluation
from eagleray.evaluation.slices import choose_columns, slice_metrics
from eagleray.inference.plan import has_bfloat16
from eagleray.io import storage
from eagleray.registry.registry import ModelVersion
from eagleray.registry.tracking import TrackedRun
from eagleray.training.events import (
    EpochCompleted,
    ImagesSkipped,
    StepsCompleted,
    TrainEvent,
    TrainingStarted,
)
from eagleray.training.launch import (
    TrainResult,
    load_best_checkpoint,
    make_worker_input,
    require_resources,
    run_range_finder,
    run_training,
)
from eagleray.training.lr_finder import NUM_RANGE_TEST_STEPS, LearningRateSuggestion
from eagleray.training.packaging import FinishedModel, finish_again, finish_model
from eagleray.training.plan import (
    TrainPlan,
    groups_of,
    is_stratified,
    plan_network,
)
from eagleray.training.prepare import TrainJob
from eagleray.training.report import overfit_warning, render_range_page, render_training_page
from eagleray.training.runs import Run, RunRecord, create_run
from eagleray.training.trainer import WorkerInput, primary_metric

__all__ = [
    "TrainSummary",
    "cross_validate",
    "evaluation_page",
    "inspect_data",
    "model_summary",
    "open_run",
    "register_model",
    "run_job",
    "run_lr_finder",
]


@dataclass(frozen=True)
class TrainSummary:
    """What became of the run."""

    run: Run
    version: ModelVersion
    tested: FinishedModel
    trained: TrainResult
    skipped: tuple[Fault, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            **model_summary(self.version, self.tested),
            "validation": self.trained.metrics,
            "best_epoch": self.trained.best.epoch,
            "epochs": list(self.trained.epochs),
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
    """Say for scripts which version was made, and how good it is."""
    return {
        "model": version.reference,
        "aliases": list(version.aliases),
        "package_digest": version.digest,
        "test": tested.evaluation.metrics,
        "test_images": tested.evaluation.num_images,
        "test_images_failed": tested.evaluation.num_failed,
    }


# --- run --------------------------------------------------------------------------------------


def run_job(job: TrainJob, cluster: Cluster, reporter: ProgressReporter) -> TrainSummary:
    """Look at the data, train, test once, register."""
    plan, report = inspect_data(job, cluster, reporter)
    kept, record = open_run(job)
    about = {"data": job.spec.data, "run": kept.name}
    page = render_data_report(report, about, title=f"Data of {kept.name}")
    storage.put_atomic(kept.page("data"), page)
    with job.registry.start_run(f"train {job.spec.name}", run_id=record.mlflow_run) as tracked:
        kept.write(record.model_copy(update={"mlflow_run": tracked.run_id}))
        tracked.log_parameters(job.spec.model_dump())
        for file in (kept.spec_file, kept.split_file):
            tracked.log_file(file)
        trained, skipped = _train(job, plan, kept, cluster, reporter, _Diary(tracked).enter)
        page = render_training_page(job.spec, kept.name, trained)
        storage.put_atomic(kept.page("training"), page)
        with reporter.status("Testing and registering"):
            tested, version = register_model(job, plan, tracked)
            page = evaluation_page(tested, version, kept)
            storage.put_atomic(kept.page("evaluation"), page)
        kept.write(
            record.model_copy(update={"mlflow_run": tracked.run_id, "version": version.reference})
        )
    warning = overfit_warning(trained.epochs)
    if warning is not None:
        reporter.warn(warning)
    warnings = (*report.warnings, *((warning,) if warning else ()))
    faults = (*report.unreadable, *skipped)
    return TrainSummary(kept, version, tested, trained, faults, warnings, report.notes)


def inspect_data(
    job: TrainJob, cluster: Cluster, reporter: ProgressReporter
) -> tuple[TrainPlan, DataReport]:
    """Decode every image once, and leave those out that cannot be.

    Raises:
        InputError: Too many cannot be.
    """
    require_resources(job.spec, cluster)
    on_cpu = job.spec.device == "cpu" or not cluster.num_gpus
    if job.spec.precision == "bfloat16" and on_cpu and not has_bfloat16("cpu"):
        reporter.warn(
            "This machine's CPUs have no bfloat16, so training in it takes about ten times as long "
            "as in float32."
        )
    plan = job.plan
    parts = plan.split.by_name
    images = join_images(*parts.values())
    with reporter.progress("Scanning images", len(images)) as bar:
        inspection = inspect_images(
            images,
            plan.contract,
            cluster=cluster,
            cache_folder=job.settings.cache_folder,
            s3=job.s3,
            progress=lambda count, failed: bar.advance(count, failed=failed),
        )
    require_readable(inspection, job.spec.max_unreadable)
    report = make_report(plan.split, inspection, job.spec.task, notes=plan.notes)
    for warning in report.warnings:
        reporter.warn(warning)
    bad = {fault.uri for fault in inspection.faults}
    readable = {
        name: part.take([row for row, uri in enumerate(part.uris) if uri not in bad])
        for name, part in parts.items()
    }
    # The test part stays whole: its unreadable images are counted by the evaluation.
    split = Split(readable["train"], readable["validation"], plan.split.test)
    require_complete_split(split, job.spec.task)
    return dataclasses.replace(plan, split=split), report


def open_run(job: TrainJob) -> tuple[Run, RunRecord]:
    """Go on with a run, or begin one: its specification and its split are kept."""
    if job.run is not None:
        return job.run, job.run.read()
    kept = create_run(job.settings, job.spec)
    digest = job.plan.data_digest
    write_split(job.plan.split, kept.split_file, data_digest=digest, seed=job.spec.seed)
    record = RunRecord(run=kept.name, data_digest=digest, alias=job.alias)
    kept.write(record)
    return kept, record


def _train(
    job: TrainJob,
    plan: TrainPlan,
    kept: Run,
    cluster: Cluster,
    reporter: ProgressReporter,
    epoch_done: Callable[[int, dict[str, float]], None],
) -> tuple[TrainResult, list[Fault]]:
    """Train to the end, showing how it goes, and put the best weights into the plan's network."""
    skipped: list[Fault] = []
    given = worker_input(job, plan, kept, reporter)
    num_images = plan.spec.epochs * len(plan.split.train)
    with reporter.progress("Images", num_images) as bar:
        teller = _Teller(plan, bar, num_images)

        def listen(report: TrainEvent) -> None:
            teller.tell(report)
            if isinstance(report, EpochCompleted):
                epoch_done(report.epoch, report.metrics)
            if isinstance(report, ImagesSkipped):
                skipped.extend(Fault(uri, Reason(why), said) for uri, why, said in report.images)

        run_training(given, ray_folder=kept.ray_folder, cluster=cluster, reporter=listen)
    trained = load_best_checkpoint(given, plan.module)
    for epoch, metrics in enumerate(trained.epochs, start=1):
        epoch_done(epoch, metrics)  # one that ended as its worker died was not told of
    return trained, skipped


class _Diary:
    """Records each epoch once, however often its end is told, also by runs before this one."""

    def __init__(self, tracked: TrackedRun) -> None:
        self._tracked = tracked
        self._entered = tracked.steps_of("train_loss")

    def enter(self, epoch: int, metrics: dict[str, float]) -> None:
        """Record the figures of an epoch, unless that was done."""
        if epoch not in self._entered:
            self._tracked.log_metrics(metrics, step=epoch)
            self._entered.add(epoch)


def worker_input(
    job: TrainJob, plan: TrainPlan, kept: Run, reporter: ProgressReporter
) -> WorkerInput:
    """Return what every worker is given."""
    reporter.note(f"run {kept.name}, in {kept.folder}")
    return make_worker_input(
        plan,
        run=kept.name,
        checkpoints=kept.checkpoints,
        cache_folder=job.settings.cache_folder,
        s3=job.s3,
    )


class _Teller:
    """Shows on a bar of images how training goes."""

    def __init__(self, plan: TrainPlan, bar: ProgressBar, num_images: int) -> None:
        self._bar, self._num_images = bar, num_images
        self._metric = primary_metric(plan.task)
        self._shown, self._num_steps, self._score = 0, 1, ""

    def tell(self, report: TrainEvent) -> None:
        """Show what a report says."""
        if isinstance(report, TrainingStarted):
            self._num_steps = report.num_steps
            self._show(report.total_steps, f"{report.num_workers} workers")
        elif isinstance(report, StepsCompleted):
            self._show(report.total_steps, f"loss {report.loss:.3f}{self._score}")
        elif isinstance(report, EpochCompleted):
            name = self._metric.removeprefix("validation_")
            self._score = f"  epoch {report.epoch}: {name} {report.metrics[self._metric]:.4f}"
            self._bar.advance(0, note=f"loss {report.metrics['train_loss']:.3f}{self._score}")

    def _show(self, total_steps: int, note: str) -> None:
        done = self._num_images * total_steps // self._num_steps
        self._bar.advance(max(0, done - self._shown), note=note)
        self._shown = max(self._shown, done)


def register_model(
    job: TrainJob, plan: TrainPlan, tracked: TrackedRun
) -> tuple[FinishedModel, ModelVersion]:
    """Test the model and make it a version; what a killed run had done of it is not done twice."""
    cache = job.settings.cache_folder
    # A run that was killed here has a version already, and makes no second one.
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
    return tested, version


def evaluation_page(tested: FinishedModel, version: ModelVersion, kept: Run) -> bytes:
    """Make the page of the test."""
    evaluation = tested.evaluation
    return render_evaluation(
        evaluation,
        {
            "model": f"{version.reference} (package {version.digest[:12]})",
            "task": version.task,
            "architecture": version.architecture,
            "data": tested.record.data,
            "data digest": tested.record.data_digest,
            "run": kept.name,
        },
        model_name=version.reference,
        intervals=bootstrap(evaluation.task, evaluation.outputs, evaluation.targets),
        slices=slice_metrics(evaluation, choose_columns(evaluation.images)),
    )


# --- other answers than a model ---------------------------------------------------------------


def run_lr_finder(
    job: TrainJob, cluster: Cluster, reporter: ProgressReporter
) -> tuple[LearningRateSuggestion, str]:
    """Try learning rates, and return the suggestion and its page."""
    plan, _ = inspect_data(job, cluster, reporter)
    kept = create_run(job.settings, job.spec)
    given = worker_input(job, plan, kept, reporter)
    with reporter.progress("Learning rates", NUM_RANGE_TEST_STEPS) as bar:
        shown = 0

        def listen(report: TrainEvent) -> None:
            nonlocal shown
            if isinstance(report, StepsCompleted):
                bar.advance(report.total_steps - shown, note=f"loss {report.loss:.3f}")
                shown = report.total_steps

        suggestion = run_range_finder(
            given, ray_folder=kept.ray_folder, cluster=cluster, reporter=listen
        )
    page = kept.page("learning-rate")
    storage.put_atomic(page, render_range_page(suggestion, f"Learning rates of {kept.name}"))
    return suggestion, page


def cross_validate(
    job: TrainJob, cluster: Cluster, reporter: ProgressReporter
) -> list[dict[str, float]]:
    """Train on all folds but one, for each of them, and return the metrics of what was left out.

    The test part plays no role, and nothing is registered.
    """
    plan, _ = inspect_data(job, cluster, reporter)
    learned = join_images(plan.split.train, plan.split.validation)
    folds = fold_images(
        learned,
        job.spec.folds,
        stratify=is_stratified(job.spec),
        seed=job.spec.seed,
        groups=groups_of(job.spec, learned),
    )
    figures = []
    for number, (train, held_out) in enumerate(folds, start=1):
        reporter.note(f"fold {number} of {len(folds)}: {len(held_out):,} images are held out")
        # The best epoch is chosen on images of its own: those held out are for the figures.
        inner = split_images(
            train,
            stratify=is_stratified(job.spec),
            validation_fraction=job.spec.validation_fraction,
            test_fraction=0.0,
            seed=job.spec.seed,
            groups=groups_of(job.spec, train),
        )
        split = Split(inner.train, inner.validation, held_out)
        fold = plan_network(job.spec, job.settings, plan.images, split, plan.task)
        kept = create_run(job.settings, job.spec)
        _train(job, fold, kept, cluster, reporter, lambda *_: None)
        with reporter.status("Testing"):
            cache = job.settings.cache_folder
            tested = finish_model(fold, fold.module, cache_folder=cache, mlflow_run=None)
        figures.append(tested.evaluation.headline)
    return figures
