"""Compares a new model with other versions on its test images: its parent, and the candidate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eagleray.core.errors import EaglerayError
from eagleray.evaluation.evaluate import evaluate
from eagleray.evaluation.leakage import Leakage
from eagleray.evaluation.predictions import ImagePredictions, take_common
from eagleray.evaluation.record import EvaluationRecord
from eagleray.registry.leakage import find_leakage
from eagleray.registry.registry import ModelVersion
from eagleray.tasks import Task
from eagleray.training.monitor import Monitor
from eagleray.training.packaging import FinishedModel, split_predictor
from eagleray.training.plan import TrainPlan
from eagleray.training.prepare import TrainJob
from eagleray.training.verdict import ComparedMetric

__all__ = ["NotComparableError", "compare_with_parent", "compare_with_version"]

MIN_COMPARED = 30
"""Number of test images that must be left where either model learned from some of them."""


HOW_TO_SHARE_TEST_IMAGES = (
    "runs have the same test images if they have the same data and --seed, the same --split-file "
    "(split.parquet of the other run), or the same --test-data"
)


class NotComparableError(Exception):
    """Two models cannot be compared; the message says why, as a part of a sentence."""


@dataclass(frozen=True)
class _Rival:
    reference: str
    task: Task
    predictions: ImagePredictions
    leakage: Leakage


def compare_with_parent(
    job: TrainJob, plan: TrainPlan, tested: FinishedModel, judge: Monitor, leakage: Leakage
) -> ComparedMetric | None:
    """Compare a new model with the parent that its weights started from, on its test images.

    Args:
        job: Job of the run.
        plan: Plan of the run.
        tested: The new model.
        judge: The metric to compare by.
        leakage: Test images that the new model or one of its ancestors learned from.

    Returns:
        The comparison; None if there is no parent in the registry, or the two do not compare.
    """
    if plan.parent is None:
        return None
    version = job.registry.version_of_package(plan.parent)
    if version is None:
        return None
    try:
        return compare_with_version(job, plan, tested, judge, leakage, version)
    except NotComparableError:
        return None


def compare_with_version(
    job: TrainJob,
    plan: TrainPlan,
    tested: FinishedModel,
    judge: Monitor,
    leakage: Leakage,
    version: ModelVersion,
) -> ComparedMetric:
    """Compare a new model with a version, on the test images that neither has learned from.

    The version is evaluated on all test images unless its predictions for them are kept, and the
    evaluation is recorded with it.

    Raises:
        NotComparableError: If it has another task or other labels, cannot be evaluated on these
            images, or too few of them are left.
    """
    rival = _evaluate(job, plan, tested, version)
    leaked = np.union1d(leakage.rows, rival.leakage.rows)
    own, other = take_common(
        ImagePredictions.of(tested.evaluation), rival.predictions, without=leaked
    )
    count = len(own.rows)
    if count == 0 or (len(leaked) and count < MIN_COMPARED):
        raise NotComparableError(
            f"{count:,} test images were used to train neither of them, and {MIN_COMPARED} are "
            f"needed; {HOW_TO_SHARE_TEST_IMAGES}"
        )
    values = [
        task.measure(side.outputs, side.targets).get(judge.name)
        for task, side in ((tested.evaluation.task, own), (rival.task, other))
    ]
    if values[0] is None or values[1] is None:
        raise NotComparableError(f"{judge.name} is not defined on the {count:,} common images")
    return ComparedMetric(rival.reference, values[0], values[1], count)


def _evaluate(
    job: TrainJob, plan: TrainPlan, tested: FinishedModel, version: ModelVersion
) -> _Rival:
    registry, images = job.registry, plan.split.test
    try:
        task = registry.manifest(version).task
        if not tested.package.task.shares_head_with(task):
            raise NotComparableError("it has another task or other labels")
        leakage = find_leakage(registry, version, images)
        kept = registry.predictions(version, images.digest)
        if kept is None:
            package = registry.load(version)
            predictor = split_predictor(package, images, job.settings.cache_folder)
            found = evaluate(predictor, images)
            kept = ImagePredictions.of(found)
            record = EvaluationRecord(
                data=tested.record.data,
                data_digest=images.digest,
                package_digest=package.digest,
                num_images=found.num_images,
                num_failed=found.num_failed,
                metrics=found.metrics,
                arguments=tested.record.arguments,
                num_leaked=len(leakage.rows),
                leakage=leakage.sentence,
            )
            registry.record_evaluation(version, record, kept)
    except EaglerayError as error:
        raise NotComparableError(f"it cannot be evaluated ({str(error).rstrip('.')})") from error
    return _Rival(version.reference, task, kept, leakage)
