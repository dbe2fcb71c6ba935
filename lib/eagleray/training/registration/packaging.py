"""Finishes a trained model: fits temperature and thresholds, tests it once, makes the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from eagleray.core.errors import BadImageError, InputError
from eagleray.core.limits import MAX_GOLDEN_PIXELS
from eagleray.data.labelled import LabelledImages
from eagleray.evaluation.evaluate import Evaluation, evaluate
from eagleray.evaluation.record import EvaluationRecord
from eagleray.imaging import decode
from eagleray.inference.predictor import Predictor
from eagleray.io import storage
from eagleray.models.package import Lineage, ModelPackage, create_package
from eagleray.tasks import Task
from eagleray.training.plan import TrainPlan

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FinishedModel", "finish_again", "finish_model", "split_predictor"]

NUM_GOLDEN = 4
MAX_GOLDEN_BYTES = 2**20


@dataclass(frozen=True)
class FinishedModel:
    """A trained model that was tested.

    Attributes:
        package: The package, ready to be registered.
        evaluation: The evaluation on the test split.
        record: The record of the evaluation for the registry.
    """

    package: ModelPackage
    evaluation: Evaluation
    record: EvaluationRecord


def finish_model(
    plan: TrainPlan, module: nn.Module, *, cache_folder: Path, mlflow_run: str | None
) -> FinishedModel:
    """Calibrate on the validation split, measure on the test split, and make the package.

    Both splits go through the predictor that batch jobs and services use, in float32.

    Args:
        plan: The plan of the run.
        module: The network with its final weights.
        cache_folder: Folder of measurements and converted networks.
        mlflow_run: The MLflow run, for the lineage.
    """
    task = _fitted_task(plan, module, cache_folder)
    lineage = Lineage.now(
        data_digest=plan.data_digest,
        split_digest=plan.split.digest,
        test_digest=plan.split.test.digest,
        run=mlflow_run,
        parent=plan.parent,
        teacher=None if plan.teacher is None else plan.teacher.digest,
    )
    draft = _package(plan, task, module, lineage)
    evaluation = evaluate(split_predictor(draft, plan.split.test, cache_folder), plan.split.test)
    package = _package(
        plan,
        task,
        module,
        lineage,
        metrics=evaluation.headline,
        golden=_golden_images(plan),
    )
    return FinishedModel(package, evaluation, _record(plan, package, evaluation))


def finish_again(plan: TrainPlan, package: ModelPackage, *, cache_folder: Path) -> FinishedModel:
    """Measure a package again that was registered by a run which was then killed.

    Args:
        plan: The plan of the run.
        package: The package from the registry.
        cache_folder: Folder of measurements and converted networks.
    """
    evaluation = evaluate(split_predictor(package, plan.split.test, cache_folder), plan.split.test)
    return FinishedModel(package, evaluation, _record(plan, package, evaluation))


def _record(plan: TrainPlan, package: ModelPackage, evaluation: Evaluation) -> EvaluationRecord:
    return EvaluationRecord(
        data=plan.spec.test_data or f"the test split of {plan.spec.data}",
        data_digest=plan.split.test.digest,
        package_digest=package.digest,
        num_images=evaluation.num_images,
        num_failed=evaluation.num_failed,
        metrics=evaluation.metrics,
    )


def _fitted_task(plan: TrainPlan, module: nn.Module, cache_folder: Path) -> Task:
    """Return the task with the temperature and thresholds that fit the validation split."""
    task, spec = plan.task, plan.spec
    wanted = {"temperature": spec.calibrate, "thresholds": spec.thresholds == "f1"}
    wanted_names = task.fitted.intersection(name for name, is_wanted in wanted.items() if is_wanted)
    if not wanted_names:
        return task
    draft = _package(plan, task, module, Lineage.now())
    split = plan.split.validation
    try:
        found = evaluate(split_predictor(draft, split, cache_folder), split)
    except InputError:  # none of its images can be decoded any more
        return task
    return task.fit(found.outputs, found.targets, wanted_names)


def split_predictor(package: ModelPackage, images: LabelledImages, cache_folder: Path) -> Predictor:
    """Return a predictor in float32: a measured choice may differ when a killed run is resumed."""
    return Predictor(
        package,
        precision="float32",
        expected_images=len(images),
        engine="eager",
        cache_folder=cache_folder,
    )


def _package(
    plan: TrainPlan,
    task: Task,
    module: nn.Module,
    lineage: Lineage,
    *,
    metrics: dict[str, float] | None = None,
    golden: Sequence[tuple[bytes, dict[str, str]]] = (),
) -> ModelPackage:
    return create_package(
        name=plan.spec.name,
        task=task,
        architecture=plan.architecture,
        contract=plan.contract,
        module=module.eval(),
        lineage=lineage,
        metrics={f"test_{name}": value for name, value in (metrics or {}).items()},
        golden_images=[image for image, _ in golden],
        attributes=plan.attributes,
        golden_attributes=[values for _, values in golden] if plan.attributes else (),
    )


def _golden_images(plan: TrainPlan) -> list[tuple[bytes, dict[str, str]]]:
    """Return a few images of the validation split, small enough for the package.

    Each comes with the attributes that the model takes.
    """
    found: list[tuple[bytes, dict[str, str]]] = []
    split = plan.split.validation
    max_pixels = min(plan.contract.max_pixels, MAX_GOLDEN_PIXELS)
    modest = plan.contract.model_copy(update={"max_pixels": max_pixels})
    for row, uri in enumerate(split.uris):
        try:
            data = storage.read_bytes(uri, limit=MAX_GOLDEN_BYTES + 1)
            decode(data, modest)
        except (OSError, BadImageError):
            continue
        if len(data) <= MAX_GOLDEN_BYTES:
            values = {one.name: split.attributes[one.name][row] for one in plan.attributes}
            found.append((data, values))
        if len(found) == NUM_GOLDEN:
            break
    return found
