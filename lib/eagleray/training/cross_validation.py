"""Cross-validates a training job: one training per fold, tested on the held-out fold."""

from __future__ import annotations

import numpy as np

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.ray_session import Cluster
from eagleray.data.labelled import LabelledImages, join_images
from eagleray.data.split import Split, fold_images, split_images
from eagleray.data.split_file import write_split
from eagleray.registry.tracking import TrackedRun
from eagleray.training.fit import fit
from eagleray.training.inspection import inspect_data, keep_duplicates_together
from eagleray.training.packaging import finish_model
from eagleray.training.plan import TrainPlan, groups_of, is_stratified, plan_network
from eagleray.training.prepare import TrainJob
from eagleray.training.runs import create_run, new_run_name
from eagleray.training.tracking import log_description, log_result, track_run

__all__ = ["cross_validate"]


def cross_validate(
    job: TrainJob, cluster: Cluster, reporter: ProgressReporter
) -> list[dict[str, float]]:
    """Train on all folds but one, for each fold, and return the metrics of the held-out folds.

    The test split is not used, and no model is registered. The folds are runs of MLflow with a
    common parent.
    """
    spec = job.spec
    job = keep_duplicates_together(job, cluster, reporter)
    plan, _ = inspect_data(job, cluster, reporter)
    images = join_images(plan.split.train, plan.split.validation)
    folds = fold_images(
        images,
        spec.folds,
        stratify=is_stratified(spec),
        seed=spec.seed,
        groups=groups_of(spec, images, plan.duplicates),
    )
    name = new_run_name(spec)
    results = []
    with track_run(job.registry, spec, name, kind="cross-validation") as parent:
        log_description(parent, job, plan, cluster)
        for number, (train, held_out) in enumerate(folds, start=1):
            fold = _plan_fold(job, plan, train, held_out)
            split = fold.split
            reporter.note(
                f"fold {number} of {len(folds)}: train {len(split.train):,}, validation "
                f"{len(split.validation):,}, held out {len(held_out):,} images"
            )
            fold_name = f"{name}-fold-{number}"
            results.append(_train_fold(job, fold, fold_name, parent, cluster, reporter))
        parent.log_metrics(_mean_and_deviation(results))
    return results


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
) -> dict[str, float]:
    """Train and test a fold as a run of its own, and return its metrics."""
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
        result, _ = fit(job, fold, run, cluster, reporter, tracked.log_epoch)
        log_result(tracked, job.spec, result)
        with reporter.status("Testing"):
            cache = job.settings.cache_folder
            tested = finish_model(fold, fold.module, cache_folder=cache, mlflow_run=None)
        metrics = tested.evaluation.headline
        tracked.log_metrics(
            {f"test_{key}": value for key, value in metrics.items()}, step=job.spec.epochs
        )
    return metrics


def _mean_and_deviation(folds: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean and the standard deviation of each metric that all folds have."""
    metrics = {}
    for name in folds[0]:
        if all(name in fold for fold in folds):
            values = [fold[name] for fold in folds]
            metrics[f"mean_{name}"] = float(np.mean(values))
            metrics[f"std_{name}"] = float(np.std(values, ddof=1))
    return metrics
