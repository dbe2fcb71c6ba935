"""The input that every training worker receives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch

from eagleray.data.labelled import LabelledImages
from eagleray.imaging import ImageContract
from eagleray.io import storage
from eagleray.models.architectures import Architecture
from eagleray.models.attributes import Attribute
from eagleray.models.package import ModelPackage
from eagleray.tasks import Task
from eagleray.training.extension import Extension
from eagleray.training.monitor import Monitor, monitor_of
from eagleray.training.spec import TrainSpec

if TYPE_CHECKING:
    from eagleray.training.plan import TrainPlan

__all__ = ["WorkerInput", "make_worker_input"]


@dataclass(frozen=True)
class WorkerInput:
    """The input of a training worker; it is put into the object store once.

    Attributes:
        spec: Specification of the run.
        task: Prediction task.
        architecture: Architecture of the network.
        contract: Image contract by which images are decoded.
        train: Training split.
        validation: Validation split.
        initial_weights: Initial weights as safetensors bytes.
        cache_folder: Folder of the decoded images.
        checkpoint_folder: Folder of the checkpoints, reachable from every worker.
        run: Name of the run.
        s3: Options of S3 access.
        attributes: Attributes that the network takes beside images.
        extensions: Extensions of the run, in order.
        teacher: Package of the model to learn from, if there is one.
    """

    spec: TrainSpec
    task: Task
    architecture: Architecture
    contract: ImageContract
    train: LabelledImages
    validation: LabelledImages
    initial_weights: bytes
    cache_folder: str
    checkpoint_folder: str
    run: str
    s3: storage.S3Options
    attributes: tuple[Attribute, ...] = ()
    extensions: tuple[Extension, ...] = ()
    teacher: ModelPackage | None = None

    @property
    def monitor(self) -> Monitor:
        """Metric that selects the best epoch."""
        return monitor_of(self.spec, self.task)


def make_worker_input(
    plan: TrainPlan, *, run: str, checkpoints: str, cache_folder: Path, s3: storage.S3Options
) -> WorkerInput:
    """Make the input of the workers from a plan.

    Args:
        plan: Plan of the run.
        run: Name of the run.
        checkpoints: Folder of the checkpoints, reachable from every worker.
        cache_folder: Folder of the decoded images.
        s3: Options of S3 access.
    """
    weights = {key: value.contiguous() for key, value in plan.module.state_dict().items()}
    return WorkerInput(
        spec=plan.spec,
        task=plan.task,
        architecture=plan.architecture,
        contract=plan.contract,
        train=plan.split.train,
        validation=plan.split.validation,
        initial_weights=safetensors.torch.save(weights),
        cache_folder=str(cache_folder),
        checkpoint_folder=checkpoints,
        run=run,
        s3=s3,
        attributes=plan.attributes,
        extensions=plan.extensions,
        teacher=plan.teacher,
    )
