"""Inspects the images of a training job: decodes each once, and skips those that fail."""

from __future__ import annotations

import dataclasses

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.ray_session import Cluster
from eagleray.data.analysis import make_report
from eagleray.data.inspection import is_inspected, require_readable, scan_images
from eagleray.data.labelled import join_images
from eagleray.data.report import DataReport
from eagleray.data.split import Split, require_complete_split
from eagleray.inference.plan import has_bfloat16
from eagleray.training.plan import TrainPlan
from eagleray.training.prepare import TrainJob
from eagleray.training.resources import require_resources

__all__ = ["inspect_data", "is_inspection_cached"]


def is_inspection_cached(job: TrainJob) -> bool:
    """Whether `inspect_data` will find its images inspected, and starts no worker."""
    images = join_images(*job.plan.split.by_name.values())
    return is_inspected(images, job.plan.contract, job.settings.cache_folder)


def inspect_data(
    job: TrainJob, cluster: Cluster, reporter: ProgressReporter
) -> tuple[TrainPlan, DataReport]:
    """Decode every image once; return a plan without those that fail, and a report on the data.

    Raises:
        InputError: If too many images fail, or the cluster is too small for the workers.
    """
    require_resources(job.spec, cluster)
    on_cpu = job.spec.device == "cpu" or not cluster.num_gpus
    if job.spec.precision == "bfloat16" and on_cpu and not has_bfloat16("cpu"):
        reporter.warn(
            "This machine's CPUs have no bfloat16, so training in it takes about ten times as long "
            "as in float32."
        )
    plan = job.plan
    splits = plan.split.by_name
    images = join_images(*splits.values())
    inspection = scan_images(
        images, plan.contract, cluster, reporter, settings=job.settings, s3=job.s3
    )
    require_readable(inspection, job.spec.max_unreadable)
    report = make_report(plan.split, inspection, job.spec.task, notes=plan.notes)
    for warning in report.warnings:
        reporter.warn(warning)
    failed = {fault.uri for fault in inspection.faults}
    readable = {
        name: split.take([row for row, uri in enumerate(split.uris) if uri not in failed])
        for name, split in splits.items()
    }
    # The test split keeps its unreadable images: the evaluation counts them.
    split = Split(readable["train"], readable["validation"], plan.split.test)
    require_complete_split(split, job.spec.task)
    return dataclasses.replace(plan, split=split), report
