"""Opens a training job, new or resumed, with every check that needs no expensive work.

`job` does the work; it takes seconds to import, so the checks are separate.
"""

from __future__ import annotations

from dataclasses import dataclass

from eagleray.core.errors import InputError
from eagleray.core.names import require_alias
from eagleray.core.settings import Settings
from eagleray.data.inspection import Inspection
from eagleray.io import storage
from eagleray.registry.registry import Registry
from eagleray.training.checkpoint import CheckpointStore
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
        registry: Registry of the model.
        settings: Settings of the process.
        alias: Alias that will point to the new version; None for `candidate`, if the version is
            better than the present one.
        s3: Options of S3 access.
        run: Run to resume; None for a new one.
        force: Move the alias from a model of another task, labels or input too.
        inspection: Inspection of all images; None before they are scanned.
    """

    plan: TrainPlan
    registry: Registry
    settings: Settings
    alias: str | None
    s3: storage.S3Options = _DEFAULT_S3
    run: Run | None = None
    force: bool = False
    inspection: Inspection | None = None

    @property
    def spec(self) -> TrainSpec:
        """Specification of the job."""
        return self.plan.spec


def open_job(
    spec: TrainSpec,
    settings: Settings,
    *,
    alias: str | None = None,
    s3: storage.S3Options = _DEFAULT_S3,
    force: bool = False,
) -> TrainJob:
    """Open a new job.

    Args:
        spec: Specification of the training.
        settings: Settings of the process.
        alias: Alias that will point to the new version; None for `candidate`, if the version is
            better than the present one.
        s3: Options of S3 access.
        force: Move the alias from a model of another task, labels or input too.

    Raises:
        UserError: If the specification cannot be carried out, or the alias points to a model of
            another task, labels or input; the message says how to fix it.
    """
    if alias is not None:
        require_alias(alias)
    plan, registry = make_plan(spec, settings), Registry(settings)
    if alias is not None and not force:
        registry.require_compatible(spec.name, plan, alias)
    return TrainJob(plan, registry, settings, alias, s3, force=force)


def reopen_job(name: str, settings: Settings, *, s3: storage.S3Options = _DEFAULT_S3) -> TrainJob:
    """Open an earlier run to resume it.

    Raises:
        UserError: If it does not exist, is complete, was begun by another version of Eagleray, or
            its data have changed.
    """
    run = find_run(settings, name)
    record = run.read()
    if record.version is not None:
        raise InputError(f"Run {name} is complete: it registered {record.version}.")
    CheckpointStore(run.checkpoints).progress()  # refuses that of another version
    plan = make_plan(run.read_spec(), settings, split_file=run.split_file)
    if plan.data_digest != record.data_digest:
        raise InputError(
            f"The data of run {name} have changed since it began ({plan.spec.data}); restore them, "
            f"or begin a new run with `eagleray train --from {name}`."
        )
    return TrainJob(plan, Registry(settings), settings, record.alias, s3, run, record.force)
