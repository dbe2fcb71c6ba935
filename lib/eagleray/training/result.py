"""The result of a training run: the best epoch, its weights and the metrics of all epochs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from eagleray.training.checkpoint import BestEpoch, CheckpointStore
from eagleray.training.worker_input import WorkerInput

__all__ = ["TrainResult", "load_best_checkpoint"]


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        best: The best epoch, whose weights are kept.
        epochs: Metrics of every epoch.
        losses: Loss of every step.
        checkpoints: Folder of the checkpoints.
        ended_early: Whether early stopping ended the run before the last epoch.
    """

    best: BestEpoch
    epochs: tuple[dict[str, float], ...]
    losses: tuple[float, ...]
    checkpoints: str
    ended_early: bool

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best epoch."""
        return self.best.metrics


def load_best_checkpoint(worker_input: WorkerInput, module: nn.Module) -> TrainResult:
    """Load the weights of the best epoch into a network, and return the result of the run."""
    checkpoint = CheckpointStore(worker_input.checkpoint_folder).latest()
    assert checkpoint is not None
    progress = checkpoint.progress
    assert progress.best is not None
    module.load_state_dict(checkpoint.best_weights)
    return TrainResult(
        best=progress.best,
        epochs=progress.epochs,
        losses=tuple(checkpoint.tensors["losses"].tolist()),
        checkpoints=worker_input.checkpoint_folder,
        ended_early=progress.epoch < worker_input.spec.epochs,
    )
