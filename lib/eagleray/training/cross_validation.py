"""Cross-validates a training job: one training per fold, tested on the held-out fold."""

from __future__ import annotations

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.ray_session import Cluster
from eagleray.data.labelled import join_images
from eagleray.data.split import Split, fold_images, split_images
from eagleray.training.fit import fit
from eagleray.training.inspection import inspect_data
from eagleray.training.packaging import finish_model
from eagleray.training.plan import groups_of, is_stratified, plan_network
from eagleray.training.prepare import TrainJob
from eagleray.training.runs import create_run

__all__ = ["cross_validate"]


def cross_validate(
    job: TrainJob, cluster: Cluster, reporter: ProgressReporter
) -> list[dict[str, float]]:
    """Train on all folds but one, for each fold, and return the metrics of the held-out folds.

    The test split is not used, and no model is registered.
    """
    spec = job.spec
    plan, _ = inspect_data(job, cluster, reporter)
    images = join_images(plan.split.train, plan.split.validation)
    folds = fold_images(
        images,
        spec.folds,
        stratify=is_stratified(spec),
        seed=spec.seed,
        groups=groups_of(spec, images),
    )
    results = []
    for number, (train, held_out) in enumerate(folds, start=1):
        # The best epoch is selected on a validation split of its own, not on the held-out fold.
        inner = split_images(
            train,
            stratify=is_stratified(spec),
            validation_fraction=spec.validation_fraction,
            test_fraction=0.0,
            seed=spec.seed,
            groups=groups_of(spec, train),
        )
        split = Split(inner.train, inner.validation, held_out)
        reporter.note(
            f"fold {number} of {len(folds)}: train {len(inner.train):,}, validation "
            f"{len(inner.validation):,}, held out {len(held_out):,} images"
        )
        fold = plan_network(spec, job.settings, plan.images, split, plan.task)
        run = create_run(job.settings, spec)
        reporter.note(f"run {run.name}, in {run.folder}")
        fit(job, fold, run, cluster, reporter)
        with reporter.status("Testing"):
            cache = job.settings.cache_folder
            tested = finish_model(fold, fold.module, cache_folder=cache, mlflow_run=None)
        results.append(tested.evaluation.headline)
    return results
