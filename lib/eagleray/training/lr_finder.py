"""Finds a learning rate by a range test: the rate rises from step to step (Smith 2017).

The suggestion is the rate at which the smoothed loss falls fastest, before it diverges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import JobFailedError
from eagleray.core.ray_session import Cluster
from eagleray.io import storage
from eagleray.registry.tracking import TrackedRun
from eagleray.reports import render_page, series
from eagleray.training.events import (
    RangeTestCompleted,
    StepsCompleted,
    TrainEvent,
    TrainingStarted,
)
from eagleray.training.fit import job_worker_input
from eagleray.training.inspection import inspect_data, keep_duplicates_together
from eagleray.training.launch import run_workers
from eagleray.training.loop.distributed import DistributedContext
from eagleray.training.loop.trainer import Trainer
from eagleray.training.plan import TrainPlan
from eagleray.training.prepare import TrainJob
from eagleray.training.runs import Run, create_run
from eagleray.training.tracking import log_description, log_pages, track_run
from eagleray.training.worker_input import WorkerInput

__all__ = [
    "LearningRateSuggestion",
    "record_range_test",
    "run_lr_finder",
    "run_range_test",
    "suggest_learning_rate",
]

_PAGE = "learning-rate"
_NUM_STEPS = 100
_MIN_RATE, _MAX_RATE = 1e-6, 1.0
_SMOOTHING = 0.9  # decay of the moving average of the loss
_DIVERGED = 4.0  # times the lowest loss


@dataclass(frozen=True)
class LearningRateSuggestion:
    """Result of a learning-rate range test.

    Attributes:
        learning_rate: Suggested learning rate; None if the loss never fell.
        rates: Learning rates of the steps.
        losses: Smoothed losses of the steps.
    """

    learning_rate: float | None
    rates: tuple[float, ...]
    losses: tuple[float, ...]


def run_lr_finder(
    job: TrainJob, cluster: Cluster, reporter: ProgressReporter
) -> tuple[LearningRateSuggestion, str]:
    """Run a range test on all workers; return the suggestion and the location of its page.

    Raises:
        JobFailedError: If the workers died.
    """
    job = keep_duplicates_together(job, cluster, reporter)
    plan, _ = inspect_data(job, cluster, reporter)
    run = create_run(job.settings, job.spec)
    reporter.announce(f"run {run.name}, in {run.folder}")
    with track_run(
        job.registry, job.spec, run.name, kind="learning-rate-search", run=run
    ) as tracked:
        log_description(tracked, job, plan, cluster)
        steps = _test_range(job, plan, run, cluster, reporter)
        suggestion = record_range_test(tracked, run, steps)
    return suggestion, run.page(_PAGE)


def record_range_test(
    tracked: TrackedRun, run: Run, steps: tuple[tuple[float, float], ...]
) -> LearningRateSuggestion:
    """Suggest a learning rate, write the page of the curve, and record both in MLflow.

    Args:
        tracked: MLflow run.
        run: Folder of the run.
        steps: (learning rate, loss) of each step.
    """
    suggestion = suggest_learning_rate(steps)
    page = _render_page(suggestion, f"Learning rates of {run.name}")
    storage.put_atomic(run.page(_PAGE), page)
    log_pages(tracked, run, _PAGE)
    tracked.log_curves(
        {
            "learning_rate": list(enumerate(suggestion.rates, start=1)),
            "train_loss_step": list(enumerate((loss for _, loss in steps), start=1)),
            "smoothed_loss": list(enumerate(suggestion.losses, start=1)),
        }
    )
    if suggestion.learning_rate is not None:
        tracked.log_metrics({"suggested_learning_rate": suggestion.learning_rate})
    return suggestion


def _test_range(
    job: TrainJob, plan: TrainPlan, run: Run, cluster: Cluster, reporter: ProgressReporter
) -> tuple[tuple[float, float], ...]:
    """Run the range test on all workers; return the learning rate and the loss of each step.

    Raises:
        JobFailedError: If the workers died.
    """
    completed: list[RangeTestCompleted] = []
    with reporter.progress("Learning rates", _NUM_STEPS) as bar:
        shown = 0

        def on_event(event: TrainEvent) -> None:
            nonlocal shown
            if isinstance(event, RangeTestCompleted):
                completed.append(event)
            if isinstance(event, StepsCompleted):
                bar.advance(event.total_steps - shown, note=f"loss {event.loss:.3f}")
                shown = event.total_steps

        failure = run_workers(
            run_range_test,
            job_worker_input(job, plan, run),
            ray_folder=run.ray_folder,
            cluster=cluster,
            on_event=on_event,
        )
    if not completed:
        raise JobFailedError(f"The learning-rate range test stopped: {failure}")
    return completed[-1].steps


def run_range_test(
    worker_input: WorkerInput, context: DistributedContext, report: Callable[[TrainEvent], None]
) -> None:
    """Take steps with rising learning rates as one of several workers, and report the losses."""
    trainer = Trainer(worker_input, context, report)
    trainer.prepare()
    trainer.report(TrainingStarted(0, _NUM_STEPS, context.world_size))
    steps: list[tuple[float, float]] = []
    lowest = math.inf
    while len(steps) < _NUM_STEPS:
        epoch = len(steps) // trainer.sampler.steps_per_epoch
        network = trainer.model.start_epoch(epoch)
        for step, batch in enumerate(trainer.prefetcher.epoch(epoch, 0)):
            rate = _MIN_RATE * (_MAX_RATE / _MIN_RATE) ** (len(steps) / (_NUM_STEPS - 1))
            loss = float(trainer.step(network, epoch, step, batch, rate))
            lowest = min(lowest, loss)
            diverged = not math.isfinite(loss) or loss > _DIVERGED * lowest
            if not diverged:
                steps.append((rate, loss))
                trainer.report(StepsCompleted(len(steps), loss))
            if diverged or len(steps) == _NUM_STEPS:
                trainer.report(RangeTestCompleted(tuple(steps)))
                return


def suggest_learning_rate(steps: tuple[tuple[float, float], ...]) -> LearningRateSuggestion:
    """Suggest the learning rate at which the loss falls fastest, per factor of the rate.

    Args:
        steps: (learning rate, loss) of each step.
    """
    smoothed, average = [], 0.0
    for number, (_, loss) in enumerate(steps, start=1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed.append(average / (1 - _SMOOTHING**number))
    rates = tuple(rate for rate, _ in steps)
    best = None
    if len(steps) > 2:
        lowest = int(np.argmin(smoothed))
        slopes = np.gradient(np.asarray(smoothed[: lowest + 1])) if lowest > 1 else np.zeros(1)
        if slopes.min() < 0:
            best = rates[int(slopes.argmin())]
    return LearningRateSuggestion(best, rates, tuple(smoothed))


def _render_page(suggestion: LearningRateSuggestion, title: str) -> bytes:
    rate = suggestion.learning_rate
    plot = series(
        suggestion.rates,
        {"smoothed loss": suggestion.losses},
        title="Loss by learning rate",
        x_label="learning rate",
        logarithmic=True,
        mark=rate,
    )
    return render_page(
        "training.html.j2",
        title=title,
        facts={"suggested": "none: the loss never fell" if rate is None else f"{rate:.2g}"},
        plots=[plot],
        warnings=(),
        epochs=[],
        columns=[],
        best=0,
        specification="",
    )
