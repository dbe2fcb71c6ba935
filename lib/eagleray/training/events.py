"""The events that the main process of a training run reports to the driver."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "DecisionRequested",
    "EpochCompleted",
    "ImagesSkipped",
    "LossNotFinite",
    "RangeTestCompleted",
    "StepsCompleted",
    "TrainEvent",
    "TrainingStarted",
]


@dataclass(frozen=True)
class TrainingStarted:
    """Training starts or resumes.

    Attributes:
        total_steps: Number of steps already finished.
        num_steps: Number of steps of the run.
        num_workers: Number of workers.
    """

    total_steps: int
    num_steps: int
    num_workers: int


@dataclass(frozen=True)
class StepsCompleted:
    """Steps are finished.

    Attributes:
        total_steps: Number of finished steps of the run.
        loss: Loss of the last step.
    """

    total_steps: int
    loss: float


@dataclass(frozen=True)
class EpochCompleted:
    """An epoch is finished and saved.

    Attributes:
        epoch: Number of the epoch, from 1.
        metrics: Metrics of the epoch.
        ended_early: Whether early stopping ends the run with this epoch.
    """

    epoch: int
    metrics: dict[str, float]
    ended_early: bool = False


@dataclass(frozen=True)
class DecisionRequested:
    """The workers wait for the driver to decide whether training continues after an epoch.

    Attributes:
        epochs: Metrics of all finished epochs.
    """

    epochs: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class ImagesSkipped:
    """Images cannot be decoded.

    Attributes:
        images: Location, reason code and message of each.
    """

    images: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class LossNotFinite:
    """The loss of a step is not finite, and training stops.

    Attributes:
        epoch: Number of the epoch, from 1.
        step: Number of the step within the epoch, from 1.
        images: Locations of the step's images.
        checkpoint: Name of the last checkpoint, if there is one.
    """

    epoch: int
    step: int
    images: tuple[str, ...]
    checkpoint: str | None


@dataclass(frozen=True)
class RangeTestCompleted:
    """A learning-rate range test is finished.

    Attributes:
        steps: Learning rate and loss of each step.
    """

    steps: tuple[tuple[float, float], ...]


TrainEvent = (
    TrainingStarted
    | StepsCompleted
    | EpochCompleted
    | DecisionRequested
    | ImagesSkipped
    | LossNotFinite
    | RangeTestCompleted
)
