"""Which learning rate: one that rises from step to step, until the loss does (Smith 2017).

The suggestion is the rate at which the smoothed loss falls the fastest, well before it turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from eagleray.training.distributed import DistributedContext, join_process_group
from eagleray.training.events import RangeTestCompleted, StepsCompleted, TrainEvent, TrainingStarted
from eagleray.training.trainer import Trainer, WorkerInput

__all__ = [
    "NUM_RANGE_TEST_STEPS",
    "LearningRateSuggestion",
    "range_test_as_ray_worker",
    "run_range_test",
    "suggest_learning_rate",
]

NUM_RANGE_TEST_STEPS = 100
_LOWEST, _HIGHEST = 1e-6, 1.0
_MEMORY = 0.9  # of the smoothed loss
_HOPELESS = 4.0  # times the lowest loss


def range_test_as_ray_worker(config: dict[str, Any]) -> None:
    """Try learning rates as one of several workers; started by Ray Train.

    Args:
        config: As for `train_as_ray_worker`.
    """
    import ray

    given: WorkerInput = ray.get(config["input"])
    context = join_process_group()
    run_range_test(given, context, config["mailbox"].put)


def run_range_test(
    given: WorkerInput, context: DistributedContext, report: Callable[[TrainEvent], None]
) -> None:
    """Take steps with rising learning rates and report rates and losses."""
    trainer = Trainer(given, context, report if context.is_main_process else lambda _: None)
    trainer.prepare()
    trainer.report(TrainingStarted(0, NUM_RANGE_TEST_STEPS, context.world_size))
    found: list[tuple[float, float]] = []
    lowest = math.inf
    while len(found) < NUM_RANGE_TEST_STEPS:
        epoch = len(found) // trainer.plan.steps_per_epoch
        model = trainer.start_epoch(epoch)
        for step, batch in enumerate(trainer.prefetcher.epoch(epoch, 0)):
            rate = _LOWEST * (_HIGHEST / _LOWEST) ** (len(found) / (NUM_RANGE_TEST_STEPS - 1))
            loss = float(trainer.step(model, epoch, step, batch, rate))
            lowest = min(lowest, loss)
            hopeless = not math.isfinite(loss) or loss > _HOPELESS * lowest
            if not hopeless:
                found.append((rate, loss))
                trainer.report(StepsCompleted(len(found), loss))
            if hopeless or len(found) == NUM_RANGE_TEST_STEPS:
                trainer.report(RangeTestCompleted(tuple(found)))
                return


@dataclass(frozen=True)
class LearningRateSuggestion:
    """What came of trying learning rates.

    Attributes:
        learning_rate: To train with; None where the loss never fell.
        rates: That were tried.
        losses: Smoothed.
    """

    learning_rate: float | None
    rates: tuple[float, ...]
    losses: tuple[float, ...]


def suggest_learning_rate(found: tuple[tuple[float, float], ...]) -> LearningRateSuggestion:
    """Choose the learning rate at which the loss falls the fastest, per factor of the rate.

    Args:
        found: (learning rate, loss) of each step.
    """
    smoothed, average = [], 0.0
    for number, (_, loss) in enumerate(found, start=1):
        average = _MEMORY * average + (1 - _MEMORY) * loss
        smoothed.append(average / (1 - _MEMORY**number))
    rates = tuple(rate for rate, _ in found)
    best = None
    if len(found) > 2:
        lowest = int(np.argmin(smoothed))
        slopes = np.gradient(np.asarray(smoothed[: lowest + 1])) if lowest > 1 else np.zeros(1)
        if slopes.min() < 0:
            best = rates[int(slopes.argmin())]
    return LearningRateSuggestion(best, rates, tuple(smoothed))
