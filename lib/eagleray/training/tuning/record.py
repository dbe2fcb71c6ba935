"""The record of a tuning: its budget and its trials, from which it is resumed.

RUN/tuning.json is written when the tuning begins, and when a trial starts or ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.training.monitor import Monitor
from eagleray.training.runs import Run
from eagleray.training.tuning.budget import Budget
from eagleray.training.tuning.trials import Trial, TrialState

__all__ = ["read_tuning", "write_tuning"]

_LOST_REASON = "the reason was lost when the tuning was interrupted"


class _StoredTrial(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    number: Annotated[int, Field(ge=1)]
    key: str
    values: dict[str, bool | int | float | str | None]
    state: TrialState
    epochs: tuple[dict[str, float], ...]
    reason: str | None


class _StoredTuning(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    num_trials: Annotated[int, Field(ge=1)]
    max_concurrent: int | None
    grace_epochs: int | None
    trials: tuple[_StoredTrial, ...]


def write_tuning(run: Run, budget: Budget, trials: Iterable[Trial]) -> None:
    """Write the budget and the present state of all trials."""
    fields: dict[str, Any] = {
        **dataclasses.asdict(budget),
        "trials": [_as_fields(trial) for trial in trials],
    }
    content = _StoredTuning.model_validate(fields).model_dump_json(indent=1)
    storage.put_atomic(run.tuning_file, content.encode())


def _as_fields(trial: Trial) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in _StoredTrial.model_fields}


def read_tuning(run: Run, monitor: Monitor) -> tuple[Budget, tuple[Trial, ...]]:
    """Read the budget and the trials of a tuning, in the order of their numbers.

    Args:
        run: Run of the tuning.
        monitor: Metric that its trials are ranked by.

    Raises:
        InputError: If the record is damaged.
    """
    try:
        stored = _StoredTuning.model_validate_json(storage.read_bytes(run.tuning_file))
    except (ValidationError, FileNotFoundError):
        raise InputError(f"{run.tuning_file} is damaged; begin a new tuning.") from None
    budget = Budget(stored.num_trials, stored.max_concurrent, stored.grace_epochs)
    trials = [Trial(monitor=monitor, **dict(one)) for one in stored.trials]
    return budget, tuple(map(_with_reason, sorted(trials, key=lambda trial: trial.number)))


def _with_reason(trial: Trial) -> Trial:
    if trial.state == "failed" and trial.reason is None:
        return dataclasses.replace(trial, reason=_LOST_REASON)
    return trial
