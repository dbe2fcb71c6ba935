"""Cross-validates a training job: one training per fold, tested on the held-out fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.ray_session import Cluster
from eagleray.data.inspection import Fault
from eagleray.data.labelled import LabelledImages, join_images
from eagleray.data.split import Split, fold_images, split_images
from eagleray.data.split_file import write_split
from eagleray.registry.tracking import TrackedRun
from eagleray.training.fit import fit
from eagleray.training.inspection import inspect_data, keep_duplicates_together
from eagleray.training.monitor import Monitor
from eagleray.training.plan import TrainPlan, groups_of, is_stratified, plan_network
from eagleray.training.prepare import TrainJob
from eagleray.training.registration.packaging import finish_model
from eagleray.training.report import overfit_warning
from eagleray.training.result import TrainResult
from eagleray.training.runs import Run, create_run
from eagleray.training.tracking import log_description, log_result, track_run

__all__ = ["CrossValidation", "Fold", "cross_validate"]


@dataclass(frozen=True)
class Fold:
    """A fold that was trained and tested.

    Attributes:
        run: Its run.
        mlflow_run: ID of its MLflow run.
        metrics: Metrics of the held-out images.
        result: Result of the training.
        skipped: Images that were skipped.
        warnings: Sentences for people on what is wrong with the training.
    """

    run: Run
    mlflow_run: str
    metrics: dict[str, float]
    result: TrainResult
    skipped: tuple[Fault, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the fold as JSON values, with the names that a run has."""
        return {
            "run": self.run.name,
            "folder": self.run.folder,
            "mlflow_run": self.mlflow_run,
            "test": self.metrics,
            "validation": self.result.metrics,
            "best_epoch": self.result.best.epoch,
            "epochs": list(self.result.epochs),
        }


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation.

    Attributes:
        run: The run that the folds have in common; its folder has the specification.
        mlflow_run: ID of the MLflow run that is the parent of the folds'.
        monitor: The metric that selects the best epoch of each fold.
        folds: The folds.
        skipped: Images that were skipped.
        warnings: Sentences for people on the data and on the trainings.
        notes: How the data were read.
    """

    run: Run
    mlflow_run: str
    monitor: Monitor
    folds: tuple[Fold, ...]
    skipped: tuple[Fault, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def spread(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation (n - 1) of each metric that all folds have."""
        found = {}
        for name in self.folds[0].metrics:
            values = [fold.metrics[name] for fold in self.folds if name in fold.metrics]
            if len(values) == len(self.folds):
                found[name] = float(np.mean(values)), float(np.std(values, ddof=1))
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values, with the names that a run has."""
        return {
            "folds": [fold.metrics for fold in self.folds],
            "mean": {name: mean for name, (mean, _) in self.spread.items()},
            "standard_deviation": {name: deviation for name, (_, deviation) in self.spread.items()},
            "monitor": self.monitor.metric,
            "mode": self.monitor.mode,
            "skipped": [fault.as_json() for fault in self.skipped],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "run": self.run.name,
            "folder": self.run.folder,
            "mlflow_run": self.mlflow_run,
            "fold_runs": [fold.as_json() for fold in self.folds],
        }


def cross_validate(job: TrainJob, cluster: Cluster, reporter: ProgressReporter) -> CrossValidation:
    """Train on all folds but one, for each fold, and test on the held-out fold.

    The test split is not used, and no model is registered. The folds are runs of MLflow with a
    common parent.
    """
    spec = job.spec
    job = keep_duplicates_together(job, cluster, reporter)
    plan, report = inspect_data(job, cluster, reporter)
    images = join_images(plan.split.train, plan.split.validation)
    folds = fold_images(
        images,
        spec.folds,
        stratify=is_stratified(spec),
        seed=spec.seed,
        groups=groups_of(spec, images, plan.duplicates),
    )
    run = create_run(job.settings, spec)
    results: list[Fold] = []
    with track_run(job.registry, spec, run.name, kind="cross-validation", run=run) as parent:
        log_description(parent, job, plan, cluster)
        for number, (train, held_out) in enumerate(folds, start=1):
            fold = _plan_fold(job, plan, train, held_out)
            split = fold.split
            reporter.note(
                f"fold {number} of {len(folds)}: train {len(split.train):,}, validation "
                f"{len(split.validation):,}, held out {len(held_out):,} images"
            )
            fold_name = f"{run.name}-fold-{number}"
            results.append(_train_fold(job, fold, fold_name, parent, cluster, reporter))
        faults = [*report.unreadable, *(fault for fold in results for fault in fold.skipped)]
        found = CrossValidation(
            run=run,
            mlflow_run=parent.run_id,
            monitor=plan.monitor,
            folds=tuple(results),
            skipped=tuple(dict.fromkeys(faults)),
            warnings=(*report.warnings, *(text for fold in results for text in fold.warnings)),
            notes=report.notes,
        )
        parent.log_metrics(
            {
                f"{kind}_{name}": value
                for name, values in found.spread.items()
                for kind, value in zip(("mean", "std"), values, strict=True)
            }
        )
    return found


def _plan_fold(
    job: TrainJob, plan: TrainPlan, train: LabelledImages, held_out: LabelledImages
) -> TrainPlan:
    """Plan a fold: the best epoch is selected on a split of its own, not on the held-out images."""
    spec = job.spec
    inner = split_images(
        train,
        stratify=is_stratified(spec),
        validation_fraction=spec.validation_fraction,
        test_fraction=0.0,
        seed=spec.seed,
        groups=groups_of(spec, train, plan.duplicates),
    )
    split = Split(inner.train, inner.validation, held_out)
    return plan_network(spec, job.settings, plan.images, split, plan.task)


def _train_fold(
    job: TrainJob,
    fold: TrainPlan,
    name: str,
    parent: TrackedRun,
    cluster: Cluster,
    reporter: ProgressReporter,
) -> Fold:
    """Train and test a fold as a run of its own."""
    run = create_run(job.settings, job.spec, name)
    write_split(
        fold.split,
        run.split_file,
        data_digest=fold.data_digest,
        seed=job.spec.seed,
        attributes=job.spec.attributes,
    )
    reporter.announce(f"run {run.name}, in {run.folder}")
    with track_run(
        job.registry, job.spec, run.name, kind="fold", run=run, parent=parent
    ) as tracked:
        log_description(tracked, job, fold, cluster)
        result, skipped = fit(job, fold, run, cluster, reporter, tracked.log_epoch)
        log_result(tracked, job.spec, result)
        with reporter.status("Testing"):
            cache = job.settings.cache_folder
            tested = finish_model(fold, fold.module, cache_folder=cache, mlflow_run=None)
        metrics = tested.evaluation.headline
        tracked.log_metrics(
            {f"test_{key}": value for key, value in metrics.items()}, step=job.spec.epochs
        )
    overfit = overfit_warning(result.epochs, fold.monitor)
    warnings = (f"{run.name}: {overfit}",) if overfit else ()
    for warning in warnings:
        reporter.warn(warning)
    return Fold(run, tracked.run_id, metrics, result, tuple(skipped), warnings)
