"""The result of a training run: the best epoch, its weights and the metrics of all epochs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from eagleray.training.loop.checkpoint import BestEpoch, CheckpointStore

__all__ = ["TrainResult", "load_best_checkpoint"]


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        best: The best epoch, whose weights are kept.
        epochs: Metrics of every epoch.
        losses: Loss of every step.
        ended_early: Whether early stopping ended the run before the last epoch.
    """

    best: BestEpoch
    epochs: tuple[dict[str, float], ...]
    losses: tuple[float, ...]
    ended_early: bool

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best epoch."""
        return self.best.metrics


def load_best_checkpoint(folder: str, module: nn.Module, *, epochs: int) -> TrainResult:
    """Load the weights of the best epoch into a network, and return the result of the run.

    Args:
        folder: Folder of the checkpoints.
        module: Network of the run.
        epochs: Number of epochs of the specification.
    """
    checkpoint = CheckpointStore(folder).latest()
    assert checkpoint is not None
    progress = checkpoint.progress
    assert progress.best is not None
    module.load_state_dict(checkpoint.best_weights)
    return TrainResult(
        best=progress.best,
        epochs=progress.epochs,
        losses=tuple(checkpoint.tensors["losses"].tolist()),
        ended_early=progress.epoch < epochs,
    )
