"""Records a training run in MLflow: tags, resolved parameters, data sets, curves and pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from eagleray.core.errors import EaglerayError
from eagleray.core.ray_session import Cluster
from eagleray.data.labelled import LabelledImages
from eagleray.imaging.contract import NAMED_CONTRACTS
from eagleray.io import storage
from eagleray.models.architectures import default_contract
from eagleray.registry.lineage import reference_of
from eagleray.registry.registry import Registry
from eagleray.registry.tracking import PARENT_TAG, TrackedDataset, TrackedRun
from eagleray.training.extension import Extension
from eagleray.training.loop.optimizer import learning_rate
from eagleray.training.plan import TrainPlan
from eagleray.training.prepare import TrainJob
from eagleray.training.report import downsample
from eagleray.training.resources import uses_gpu
from eagleray.training.result import TrainResult
from eagleray.training.runs import Run
from eagleray.training.spec import TrainSpec

__all__ = [
    "RunKind",
    "log_description",
    "log_pages",
    "log_result",
    "resolved_parameters",
    "track_run",
]

RunKind = Literal["train", "cross-validation", "fold", "learning-rate-search", "tune", "trial"]

_PAGES = "pages"
"""The folder of a run's artifacts with its pages."""


def track_run(
    registry: Registry,
    spec: TrainSpec,
    name: str,
    *,
    kind: RunKind,
    run: Run | None = None,
    run_id: str | None = None,
    parent: TrackedRun | None = None,
) -> TrackedRun:
    """Start the MLflow run of a training, or resume it.

    Args:
        registry: Registry of the model.
        spec: Specification of the training.
        name: Name of the MLflow run.
        kind: What the run is.
        run: Folder of the run, if it has one.
        run_id: MLflow run to resume; None starts a new one.
        parent: MLflow run that this one is part of.
    """
    command = "tune" if kind in ("tune", "trial") else "train"
    tags = {
        "eagleray.kind": kind,
        "mlflow.source.name": f"eagleray {command}",
        **spec.tag_values,
    }
    if run is not None:
        tags |= {
            "eagleray.run": run.name,
            "eagleray.folder": storage.absolute(run.folder),
            "eagleray.specification": storage.absolute(run.spec_file),
        }
        if storage.exists(run.split_file):
            tags["eagleray.split"] = storage.absolute(run.split_file)
    if spec.notes is not None:
        tags["mlflow.note.content"] = spec.notes
    if parent is not None:
        tags[PARENT_TAG] = parent.run_id
    return registry.start_run(
        name,
        run_id=run_id,
        experiment=spec.experiment,
        tags=tags,
        samples_system=parent is None,  # the machine's use is that of all children
    )


def log_description(tracked: TrackedRun, job: TrainJob, plan: TrainPlan, cluster: Cluster) -> None:
    """Record the parameters of a training with their resolved values, and its data sets."""
    tracked.log_parameters(resolved_parameters(job, plan, cluster))
    if plan.spec.teacher is not None:
        tracked.set_tags({"eagleray.teacher": plan.spec.teacher})
    test_data = plan.spec.test_data or plan.spec.data
    tracked.log_datasets(
        [
            _dataset(name, images, test_data if name == "test" else plan.spec.data)
            for name, images in plan.split.by_name.items()
            if len(images)
        ]
    )


def log_result(
    tracked: TrackedRun,
    spec: TrainSpec,
    result: TrainResult,
    extensions: Sequence[Extension] = (),
) -> None:
    """Record the best epoch, and the loss and the learning rate by step.

    A run that was extended is tagged with the MLflow run that it had before.
    """
    if extensions and extensions[-1].mlflow_run is not None:
        tracked.set_tags({"eagleray.extends": extensions[-1].mlflow_run})
    epoch = result.best.epoch
    best = {f"best_{name}": value for name, value in _validation(result.metrics).items()}
    tracked.log_metrics({"best_epoch": epoch, **best}, step=epoch)
    num_steps = len(result.losses) * spec.epochs // len(result.epochs)
    steps = downsample(result.losses)
    tracked.log_curves(
        {
            "train_loss_step": steps,
            "learning_rate": [
                (step, learning_rate(spec, step - 1, num_steps, extensions)) for step, _ in steps
            ],
        }
    )


def log_pages(tracked: TrackedRun, run: Run, *names: str) -> None:
    """Keep copies of a run's pages with the MLflow run."""
    for name in names:
        tracked.log_file(run.page(name), _PAGES)


def resolved_parameters(job: TrainJob, plan: TrainPlan, cluster: Cluster) -> dict[str, object]:
    """Return the fields of a specification that are set, or resolved to the values in use."""
    spec, contract = plan.spec, plan.contract
    height, width, _ = contract.shape
    parameters = {
        **spec.model_dump(exclude={"experiment", "tags", "notes"}),
        "architecture": plan.architecture.name,
        "contract": _contract_name(plan),
        "contract_digest": contract.digest,
        "image_size": height if height == width else f"{height}x{width}",
        "parent": reference_of(job.registry, plan.parent) if plan.parent else None,
        "parent_digest": plan.parent,
        "teacher_digest": plan.teacher.digest if plan.teacher else None,
        "multiply_adds": plan.pruned.multiply_adds if plan.pruned else None,
        "multiply_adds_before": plan.pruned.multiply_adds_before if plan.pruned else None,
        "labels": ", ".join(plan.task.labels),
        "positive": plan.task.positive,
        "num_classes": len(plan.task.labels),
        "monitor": plan.monitor.name,
        "mode": plan.monitor.mode,
        "device": "gpu" if uses_gpu(spec, cluster) else "cpu",
        "data_digest": plan.data_digest,
        "split_digest": plan.split.digest,
        **{f"{name}_images": len(images) for name, images in plan.split.by_name.items()},
    }
    return {name: value for name, value in parameters.items() if value not in (None, ())}


def _contract_name(plan: TrainPlan) -> str:
    """Return the name of the contract in use, or `custom` if it is not a named one."""
    side = plan.contract.shape[0]
    for name in NAMED_CONTRACTS:
        try:
            named = default_contract(plan.architecture.name, name, size=side)
        except EaglerayError:  # the architecture does not allow it
            continue
        if named.digest == plan.contract.digest:
            return name
    return "custom"


def _dataset(context: str, images: LabelledImages, source: str) -> TrackedDataset:
    return TrackedDataset(
        name=storage.name_of(source),
        context=context,
        digest=images.digest,
        source=storage.absolute(source),
        columns=("uri", "label", *images.attributes),
        profile={"images": len(images), "labels": len(set(images.labels))},
    )


def _validation(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("validation_")}
