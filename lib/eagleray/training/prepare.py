"""A training job is opened: all that can be wrong with it is found before its work is even loaded.

What does the work takes seconds to import, so it is in other files.
"""

from __future__ import annotations

from dataclasses import dataclass

from eagleray.core.errors import InputError
from eagleray.core.names import require_alias
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.registry.registry import Registry
from eagleray.training.plan import TrainPlan, make_plan
from eagleray.training.runs import Run, find_run
from eagleray.training.spec import TrainSpec

__all__ = ["TrainJob", "open_job", "reopen_job"]

_FROM_HERE = storage.S3Options()  # as this process reaches it


@dataclass(frozen=True)
class TrainJob:
    """A specification with all that it needs, checked.

    Attributes:
        plan: What is trained on what.
        registry: Gets the model.
        settings: Of this process.
        alias: Points to the new version.
        s3: How S3 is reached.
        run: That goes on; None for a new one.
    """

    plan: TrainPlan
    registry: Registry
    settings: Settings
    alias: str
    s3: storage.S3Options = _FROM_HERE
    run: Run | None = None

    @property
    def spec(self) -> TrainSpec:
        """What was asked."""
        return self.plan.spec


def open_job(
    spec: TrainSpec, settings: Settings, *, alias: str, s3: storage.S3Options = _FROM_HERE
) -> TrainJob:
    """Check everything that can be wrong before expensive work starts.

    Raises:
        UserError: With what to mend.
    """
    require_alias(alias)
    return TrainJob(make_plan(spec, settings), Registry(settings), settings, alias, s3)


def reopen_job(name: str, settings: Settings, *, s3: storage.S3Options = _FROM_HERE) -> TrainJob:
    """Open a run that was begun before, to go on with it.

    Raises:
        UserError: There is none, it has ended, or its data have changed.
    """
    run = find_run(settings, name)
    record = run.read()
    if record.version is not None:
        raise InputError(f"Run {name} has ended: it made {record.version}.")
    plan = make_plan(run.read_spec(), settings, split_file=run.split_file)
    if plan.data_digest != record.data_digest:
        raise InputError(
            f"The data of run {name} have changed since it began ({plan.spec.data}); restore them, "
            f"or begin anew with `eagleray train --from {name}`."
        )
    return TrainJob(plan, Registry(settings), settings, record.alias, s3, run)
