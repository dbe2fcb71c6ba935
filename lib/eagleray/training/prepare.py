"""Opens a training job, new or resumed, with every check that needs no expensive work.

`job` does the work; it takes seconds to import, so the checks are separate.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from eagleray.core.errors import InputError
from eagleray.core.names import require_alias
from eagleray.core.settings import Settings
from eagleray.data.inspection import Inspection
from eagleray.io import storage
from eagleray.io.spec_fields import S3Fields
from eagleray.registry.registry import Registry
from eagleray.training.extension import make_extension
from eagleray.training.loop.checkpoint import CheckpointStore
from eagleray.training.plan import TrainPlan, make_plan
from eagleray.training.runs import Run, find_run
from eagleray.training.spec import TrainSpec

__all__ = ["TrainJob", "open_job", "reopen_job"]

_DEFAULT_S3 = storage.S3Options()


@dataclass(frozen=True)
class TrainJob:
    """A checked training job.

    Attributes:
        plan: Plan of the training.
        settings: Settings of the process.
        alias: Alias that will point to the new version; None for `candidate`, if the version is
            better than the present one.
        s3: Options of S3 access.
        run: Run to resume; None for a new one.
        force: Move the alias from a model of another task, labels or input too.
        inspection: Inspection of all images; None before they are scanned.
    """

    plan: TrainPlan
    settings: Settings
    alias: str | None
    s3: storage.S3Options = _DEFAULT_S3
    run: Run | None = None
    force: bool = False
    inspection: Inspection | None = None

    @functools.cached_property
    def registry(self) -> Registry:
        """Registry of the model, which is connected to when it is first used."""
        return Registry(self.settings)

    @property
    def spec(self) -> TrainSpec:
        """Specification of the job."""
        return self.plan.spec


def open_job(
    spec: TrainSpec, settings: Settings, *, alias: str | None = None, force: bool = False
) -> TrainJob:
    """Open a new job.

    Args:
        spec: Specification of the training.
        settings: Settings of the process.
        alias: Alias that will point to the new version; None for `candidate`, if the version is
            better than the present one.
        force: Move the alias from a model of another task, labels or input too.

    Raises:
        UserError: If the specification cannot be carried out, or the alias points to a model of
            another task, labels or input; the message says how to fix it.
    """
    if alias is not None:
        require_alias(alias)
    s3 = _use_s3(spec, settings)
    job = TrainJob(make_plan(spec, settings), settings, alias, s3, force=force)
    if alias is not None and not force:
        job.registry.require_compatible(spec.name, job.plan, alias)
    return job


def reopen_job(
    name: str, settings: Settings, *, epochs: int | str | None = None, is_tuning: bool = False
) -> TrainJob:
    """Open an earlier run to resume it, or to extend it.

    Args:
        name: Name of the run.
        settings: Settings of the process.
        epochs: Number of epochs that the run is extended to, also if it is complete; None resumes
            an incomplete one.
        is_tuning: Whether the run is a tuning.

    Raises:
        UserError: If it does not exist, is complete, was begun by another version of Eagleray, has
            more epochs already, or its data have changed.
    """
    _use_s3(S3Fields(), settings)  # the run may be there
    run = find_run(settings, name)
    record = run.read()
    if is_tuning != storage.exists(run.tuning_file):
        kind, command = ("training", "train") if is_tuning else ("tuning", "tune")
        raise InputError(f"Run {name} is a {kind}; resume it by `eagleray {command} --resume`.")
    if is_tuning and record.version is not None:
        raise InputError(f"Tuning {name} is complete: it registered {record.version}.")
    spec = initial = run.read_spec()
    progress = CheckpointStore(run.checkpoints).progress()  # refuses that of another version
    extensions = record.extensions
    if extensions:
        spec = spec.model_copy(update={"epochs": extensions[-1].epochs})
    if epochs is not None:
        wanted = TrainSpec.make(
            {**spec.model_dump(), "epochs": epochs},
            name=lambda field: "--epochs" if field == "epochs" else initial.name_of(field),
        )
        extension = make_extension(
            name,
            progress,
            planned=spec.epochs,
            epochs=wanted.epochs,
            version=record.version,
            mlflow_run=record.mlflow_run,
            earlier=extensions,
        )
        spec, extensions = wanted, (*extensions, *([extension] if extension else ()))
    elif record.version is not None:
        raise InputError(
            f"Run {name} is complete: it registered {record.version} after {spec.epochs} epochs; "
            "name more with --epochs to extend it."
        )
    s3 = _use_s3(spec, settings)
    plan = make_plan(spec, settings, split_file=run.split_file)
    if plan.data_digest != record.data_digest:
        raise InputError(
            f"The data of run {name} have changed since it began ({plan.spec.data}); restore them, "
            f"or begin a new run with `eagleray train --from {name}`."
        )
    plan = dataclasses.replace(plan, extensions=extensions)
    return TrainJob(plan, settings, record.alias, s3, run, record.force)


def _use_s3(fields: S3Fields, settings: Settings) -> storage.S3Options:
    """Have this process reach S3 as a specification and the settings say."""
    s3 = fields.with_settings(settings).s3
    storage.use_s3(s3)
    return s3
