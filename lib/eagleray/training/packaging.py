"""After the last step: calibrate, test once, make the package, register it, write the pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from eagleray.core.errors import BadImageError, InputError
from eagleray.core.limits import MAX_GOLDEN_PIXELS
from eagleray.data.labelled import LabelledImages
from eagleray.evaluation.calibration import at_temperature, fit_temperature
from eagleray.evaluation.evaluate import Evaluation, evaluate
from eagleray.evaluation.record import EvaluationRecord
from eagleray.evaluation.thresholds import choose_thresholds
from eagleray.imaging import decode
from eagleray.inference.predictor import Predictor
from eagleray.io import storage
from eagleray.models.package import Lineage, ModelPackage, create_package
from eagleray.tasks.tasks import Binary, Multilabel, Regression, Task
from eagleray.training.plan import TrainPlan

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FinishedModel", "finish_again", "finish_model"]

NUM_GOLDEN = 4
MAX_GOLDEN_BYTES = 2**20


@dataclass(frozen=True)
class FinishedModel:
    """A trained model, tested.

    Attributes:
        package: Ready to be registered.
        evaluation: On the test part.
        record: Of the evaluation, for the registry.
    """

    package: ModelPackage
    evaluation: Evaluation
    record: EvaluationRecord


def finish_model(
    plan: TrainPlan, module: nn.Module, *, cache_folder: Path, mlflow_run: str | None
) -> FinishedModel:
    """Calibrate on the validation part, measure on the test part, and make the package.

    Everything goes through the predictor that batch jobs and services use.

    Args:
        plan: What was trained.
        module: The network with its final weights.
        cache_folder: Of compiled networks.
        mlflow_run: For the lineage.
    """
    task = _settled_task(plan, module, cache_folder)
    lineage = Lineage.now(
        data_digest=plan.data_digest,
        split_digest=plan.split.digest,
        test_digest=plan.split.test.digest,
        run=mlflow_run,
        parent=plan.parent,
    )
    draft = _package(plan, task, module, lineage)
    evaluation = evaluate(_predictor(draft, plan.split.test, cache_folder), plan.split.test)
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
    """Measure a package that was registered by a run that was killed before it could say so.

    Args:
        plan: What was trained.
        package: As the registry has it.
        cache_folder: Of compiled networks.
    """
    evaluation = evaluate(_predictor(package, plan.split.test, cache_folder), plan.split.test)
    return FinishedModel(package, evaluation, _record(plan, package, evaluation))


def _record(plan: TrainPlan, package: ModelPackage, evaluation: Evaluation) -> EvaluationRecord:
    return EvaluationRecord(
        data=plan.spec.test_data or f"the test part of {plan.spec.data}",
        data_digest=plan.split.test.digest,
        package_digest=package.digest,
        num_images=evaluation.num_images,
        num_failed=evaluation.num_failed,
        metrics=evaluation.metrics,
    )


def _settled_task(plan: TrainPlan, module: nn.Module, cache_folder: Path) -> Task:
    """Return the task with the temperature and the thresholds that the validation part suggests."""
    task, spec = plan.task, plan.spec
    wants_thresholds = spec.thresholds == "f1" and isinstance(task, (Binary, Multilabel))
    if isinstance(task, Regression) or not (spec.calibrate or wants_thresholds):
        return task
    draft = _package(plan, task, module, Lineage.now())
    part = plan.split.validation
    try:
        answers = evaluate(_predictor(draft, part, cache_folder), part)
    except InputError:  # none of its images can be decoded any more: nothing to learn from
        return task
    outputs: Tensor = answers.outputs
    if spec.calibrate:
        temperature = fit_temperature(task, outputs, answers.targets)
        outputs = at_temperature(task, outputs, temperature)
        task = task.model_copy(update={"temperature": temperature})
    if wants_thresholds:
        task = choose_thresholds(task, outputs, answers.targets)
    return task


def _predictor(package: ModelPackage, images: LabelledImages, cache_folder: Path) -> Predictor:
    return Predictor(
        package, expected_images=len(images), compile_mode="never", cache_folder=cache_folder
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
    """Return a few good images of the validation part, small enough to travel with the model.

    With each of them are its attributes, those that the model takes.
    """
    found: list[tuple[bytes, dict[str, str]]] = []
    part = plan.split.validation
    most = min(plan.contract.max_pixels, MAX_GOLDEN_PIXELS)
    modest = plan.contract.model_copy(update={"max_pixels": most})
    for row, uri in enumerate(part.uris):
        try:
            data = storage.read_bytes(uri, limit=MAX_GOLDEN_BYTES + 1)
            decode(data, modest)
        except (OSError, BadImageError):
            continue
        if len(data) <= MAX_GOLDEN_BYTES:
            values = {one.name: part.attributes[one.name][row] for one in plan.attributes}
            found.append((data, values))
        if len(found) == NUM_GOLDEN:
            break
    return found
