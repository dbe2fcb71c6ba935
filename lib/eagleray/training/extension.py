"""Extends a training run beyond the epochs that it was planned for.

A run trains on from its newest checkpoint, with more epochs. The learning rate of a step stays a
function of its position: `optimizer.learning_rate` reads the extensions of the run beside it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from eagleray.core.errors import InputError
from eagleray.training.loop.checkpoint import Progress
from eagleray.training.spec import TrainSpec

__all__ = ["Extension", "describe_extension", "make_extension", "reopened"]

_RULES = {
    "constant": "the learning rate stays as it is",
    "step": "the learning rate stays at its last value",
    "linear": "the learning rate is that of a run of {epochs} epochs from here on",
    "cosine": "the learning rate is that of a run of {epochs} epochs from here on",
    "one_cycle": "a new cycle of the learning rate over the rest starts from its present value",
}


class Extension(BaseModel):
    """An extension of a run, as `run.json` keeps it.

    Attributes:
        step: Number of finished steps of the run when it was extended.
        epoch: Number of finished epochs when it was extended.
        planned: Number of epochs that the run had until then.
        epochs: Number of epochs that it has from then on.
        version: Version that the run had registered by then, if any.
        mlflow_run: Identifier of the MLflow run until then.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    epoch: int
    planned: int
    epochs: int
    version: str | None = None
    mlflow_run: str | None = None


def make_extension(
    run: str,
    progress: Progress | None,
    *,
    planned: int,
    epochs: int,
    version: str | None,
    mlflow_run: str | None,
    earlier: tuple[Extension, ...] = (),
) -> Extension | None:
    """Return the extension of a run to more epochs; None if it is planned for them already.

    Args:
        run: Name of the run.
        progress: Position of the newest checkpoint, if there is one.
        planned: Number of epochs that the run has.
        epochs: Number of epochs that it will have.
        version: Version that the run has registered, if any.
        mlflow_run: Identifier of its MLflow run.
        earlier: Earlier extensions of the run.

    Raises:
        InputError: If the run has as many epochs already.
    """
    progress = progress or Progress()
    ended = progress.ended and not reopened(progress, earlier)
    if version is None and not ended and epochs == planned:
        return None  # it was extended before, and interrupted
    least = progress.epoch if ended else planned
    if epochs <= least:
        state = "has finished" if ended else "is planned for"
        raise InputError(
            f"--epochs {epochs}: run {run} {state} {least} epochs; name a larger number to extend "
            "it."
        )
    return Extension(
        step=progress.total_steps,
        epoch=progress.epoch,
        planned=planned,
        epochs=epochs,
        version=version,
        mlflow_run=mlflow_run,
    )


def reopened(progress: Progress, extensions: tuple[Extension, ...]) -> bool:
    """Whether a position marked as the end of a run is not the end any more: it was extended."""
    return bool(extensions) and progress.total_steps <= extensions[-1].step


def describe_extension(spec: TrainSpec, extension: Extension) -> str:
    """Return a sentence on how an extended run goes on."""
    rule = _RULES[spec.lr_schedule].format(epochs=extension.epochs)
    return (
        f"extended from {extension.planned} to {extension.epochs} epochs, after "
        f"{extension.epoch} finished ones; {rule} ({spec.lr_schedule})"
    )
