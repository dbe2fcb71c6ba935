"""What the leader of the workers tells the driver while it trains."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
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
    """Training starts, or goes on after a stop.

    Attributes:
        total_steps: Finished already.
        num_steps: Of the whole run.
        num_workers: Taking part.
    """

    total_steps: int
    num_steps: int
    num_workers: int


@dataclass(frozen=True)
class StepsCompleted:
    """Some steps are finished.

    Attributes:
        total_steps: Since the run began.
        loss: Of the last one.
    """

    total_steps: int
    loss: float


@dataclass(frozen=True)
class EpochCompleted:
    """An epoch is finished and saved.

    Attributes:
        epoch: Counts from 1.
        metrics: Of the epoch.
        ended_early: Whether no epoch follows although some were left.
    """

    epoch: int
    metrics: dict[str, float]
    ended_early: bool = False


@dataclass(frozen=True)
class ImagesSkipped:
    """Images that cannot be decoded: (location, reason, message) of each."""

    images: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class LossNotFinite:
    """The loss is not finite.

    Attributes:
        epoch: Counts from 1.
        step: Of the epoch, counts from 1.
        images: Of that step.
        checkpoint: Name of the last good one.
    """

    epoch: int
    step: int
    images: tuple[str, ...]
    checkpoint: str | None


@dataclass(frozen=True)
class RangeTestCompleted:
    """Learning rates were tried: (rate, loss) of each step."""

    steps: tuple[tuple[float, float], ...]


TrainEvent = (
    TrainingStarted
    | StepsCompleted
    | EpochCompleted
    | ImagesSkipped
    | LossNotFinite
    | RangeTestCompleted
)
