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
        alias: Alias that will point to the new version.
        s3: Options of S3 access.
        run: Run to resume; None for a new one.
        inspection: Inspection of all images; None before they are scanned.
    """

    plan: TrainPlan
    registry: Registry
    settings: Settings
    alias: str
    s3: storage.S3Options = _DEFAULT_S3
    run: Run | None = None
    inspection: Inspection | None = None

    @property
    def spec(self) -> TrainSpec:
        """Specification of the job."""
        return self.plan.spec


def open_job(
    spec: TrainSpec, settings: Settings, *, alias: str, s3: storage.S3Options = _DEFAULT_S3
) -> TrainJob:
    """Open a new job.

    Raises:
        UserError: If the specification cannot be carried out; the message says how to fix it.
    """
    require_alias(alias)
    return TrainJob(make_plan(spec, settings), Registry(settings), settings, alias, s3)


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
    plan = make_plan(run.read_spec(), settings, split_file=run.split_file)
    if plan.data_digest != record.data_digest:
        raise InputError(
            f"The data of run {name} have changed since it began ({plan.spec.data}); restore them, "
            f"or begin a new run with `eagleray train --from {name}`."
        )
    return TrainJob(plan, Registry(settings), settings, record.alias, s3, run)
