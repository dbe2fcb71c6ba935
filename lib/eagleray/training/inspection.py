"""Inspects the images of a training job: decodes each once, and skips those that fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.ray_session import Cluster
from eagleray.data.analysis import make_report
from eagleray.data.color import count_in_color
from eagleray.data.data_warnings import Remedies
from eagleray.data.inspection import Inspection, is_inspected, require_readable, scan_images
from eagleray.data.labelled import join_images
from eagleray.data.near_duplicates import group_duplicates
from eagleray.data.report import DataReport
from eagleray.data.split import Split, require_complete_split
from eagleray.inference.plan import has_bfloat16
from eagleray.training.plan import TrainPlan, divide_again
from eagleray.training.prepare import TrainJob
from eagleray.training.resources import require_resources, uses_gpu

__all__ = ["inspect_data", "is_inspection_cached", "keep_duplicates_together"]


def is_inspection_cached(job: TrainJob) -> bool:
    """Whether `inspect_data` will find its images inspected, and starts no worker."""
    images = join_images(*job.plan.split.by_name.values())
    return is_inspected(images, job.plan.contract, job.settings.cache_folder)


def keep_duplicates_together(
    job: TrainJob, cluster: Cluster, reporter: ProgressReporter
) -> TrainJob:
    """Return the job with its data divided anew, if its specification keeps duplicates together.

    A resumed run has its split already.

    Raises:
        InputError: If there are too few groups of duplicates for all splits and classes.
    """
    if not job.spec.keep_duplicates_together or job.run is not None:
        return job
    require_resources(job.spec, cluster)
    inspection = _scan(job, cluster, reporter)
    with reporter.status("Searching for duplicates"):
        keys = zip(inspection.uris, group_duplicates(inspection), strict=True)
        plan = divide_again(job.plan, job.settings, {uri: key for uri, key in keys if key})
    counts = ", ".join(f"{name} {len(images):,}" for name, images in plan.split.by_name.items())
    reporter.note(
        f"duplicates are kept in one split: {len(plan.duplicates):,} images have some; {counts}"
    )
    return dataclasses.replace(job, plan=plan, inspection=inspection)


def _scan(job: TrainJob, cluster: Cluster, reporter: ProgressReporter) -> Inspection:
    images = join_images(*job.plan.split.by_name.values())
    return scan_images(
        images, job.plan.contract, cluster, reporter, settings=job.settings, s3=job.s3
    )


def inspect_data(
    job: TrainJob, cluster: Cluster, reporter: ProgressReporter
) -> tuple[TrainPlan, DataReport]:
    """Decode every image once; return a plan without those that fail, and a report on the data.

    Raises:
        InputError: If too many images fail, or the cluster is too small for the workers.
    """
    require_resources(job.spec, cluster)
    on_cpu = not uses_gpu(job.spec, cluster)
    if job.spec.precision == "bfloat16" and on_cpu and not has_bfloat16("cpu"):
        reporter.warn(
            "This machine's CPUs have no bfloat16, so training in it takes about ten times as long "
            "as in float32."
        )
    plan = job.plan
    splits = plan.split.by_name
    inspection = job.inspection or _scan(job, cluster, reporter)
    require_readable(inspection, job.spec.max_unreadable)
    report = make_report(
        plan.split, inspection, job.spec.task, notes=plan.notes, remedies=_remedies(plan)
    )
    failed = {fault.uri for fault in inspection.faults}
    lost = _warn_of_lost_color(plan, failed)
    report = dataclasses.replace(report, warnings=(*report.warnings, *lost))
    for warning in report.warnings:
        reporter.warn(warning)
    readable = {
        name: split.take([row for row, uri in enumerate(split.uris) if uri not in failed])
        for name, split in splits.items()
    }
    # The test split keeps its unreadable images: the evaluation counts them.
    split = Split(readable["train"], readable["validation"], plan.split.test)
    require_complete_split(split, job.spec.task)
    return dataclasses.replace(plan, split=split), report


def _remedies(plan: TrainPlan) -> Remedies:
    """Return what can still be done about a warning: what is done already is no advice."""
    spec = plan.spec
    is_given = spec.keep_duplicates_together or spec.split_file is not None or plan.images.splits
    made = () if is_given else ("validation",) if spec.test_data else ("validation", "test")
    return Remedies(can_weight=not spec.balances_classes, divided=made)


def _warn_of_lost_color(plan: TrainPlan, failed: Collection[str]) -> Iterator[str]:
    """Warn if most images are in colour and the network takes gray ones."""
    if plan.contract.color != "gray":
        return
    readable = [uri for uri in plan.split.train.uris if uri not in failed]
    in_color, sampled = count_in_color(readable)
    if 2 * in_color > sampled:
        yield (
            f"{plan.architecture.name} takes gray images here, and {in_color:,} of {sampled:,} "
            "sampled training images are in colour: the model cannot tell colours apart. If they "
            "matter, name an architecture that takes colour, such as resnet18 or resnet20."
        )
