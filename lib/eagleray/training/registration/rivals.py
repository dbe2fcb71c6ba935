"""Compares a new model with other versions on its test images: its parent, and the candidate."""

from __future__ import annotations

from dataclasses import dataclass, field

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
from eagleray.training.plan import TrainPlan
from eagleray.training.prepare import TrainJob
from eagleray.training.registration.packaging import FinishedModel, split_predictor
from eagleray.training.registration.verdict import ComparedMetric

__all__ = ["Contender", "NotComparableError"]

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


@dataclass(frozen=True)
class Contender:
    """A new model that is compared with other versions.

    Attributes:
        job: Job of the run.
        plan: Plan of the run.
        tested: The new model, with its evaluation on the test split.
        judge: The metric to compare by.
        leakage: Test images that the new model or one of its ancestors learned from.
    """

    job: TrainJob
    plan: TrainPlan
    tested: FinishedModel
    judge: Monitor
    leakage: Leakage
    _compared: dict[str, ComparedMetric | NotComparableError] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def compare_with_parent(self) -> ComparedMetric | None:
        """Compare with the parent that the weights started from.

        Returns:
            The comparison; None if there is no parent in the registry, or the two do not compare.
        """
        if self.plan.parent is None:
            return None
        version = self.job.registry.version_of_package(self.plan.parent)
        if version is None:
            return None
        try:
            return self.compare_with(version)
        except NotComparableError:
            return None

    def compare_with(self, version: ModelVersion) -> ComparedMetric:
        """Compare with a version, on the test images that neither has learned from.

        The version is evaluated on all test images unless its predictions for them are kept, and
        the evaluation is recorded with it. The parent is often the candidate, too: each version is
        compared once.

        Raises:
            NotComparableError: If it has another task or other labels, cannot be evaluated on
                these images, or too few of them are left.
        """
        if version.reference not in self._compared:
            try:
                self._compared[version.reference] = self._compare(version)
            except NotComparableError as error:
                self._compared[version.reference] = error
        compared = self._compared[version.reference]
        if isinstance(compared, NotComparableError):
            raise compared
        return compared

    def _compare(self, version: ModelVersion) -> ComparedMetric:
        tested, judge = self.tested, self.judge
        rival = _evaluate(self.job, self.plan, tested, version)
        leaked = np.union1d(self.leakage.rows, rival.leakage.rows)
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
