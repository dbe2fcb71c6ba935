"""Trains a plan to the end with a progress bar, and loads the best epoch's weights."""

from __future__ import annotations

from collections.abc import Callable

from eagleray.core.callbacks import ProgressBar, ProgressReporter
from eagleray.core.errors import Reason
from eagleray.core.ray_session import Cluster
from eagleray.data.inspection import Fault
from eagleray.training.events import (
    EpochCompleted,
    ImagesSkipped,
    StepsCompleted,
    TrainEvent,
    TrainingStarted,
)
from eagleray.training.launch import run_training
from eagleray.training.plan import TrainPlan
from eagleray.training.prepare import TrainJob
from eagleray.training.result import TrainResult, load_best_checkpoint
from eagleray.training.runs import Run
from eagleray.training.worker_input import WorkerInput, make_worker_input

__all__ = ["EpochCallback", "fit", "job_worker_input"]

EpochCallback = Callable[[int, dict[str, float]], None]
"""Receives the number of an epoch, from 1, and its metrics."""


def job_worker_input(job: TrainJob, plan: TrainPlan, run: Run) -> WorkerInput:
    """Return the workers' input of a job's run."""
    return make_worker_input(
        plan,
        run=run.name,
        checkpoints=run.checkpoints,
        cache_folder=job.settings.cache_folder,
        s3=job.s3,
    )


def fit(
    job: TrainJob,
    plan: TrainPlan,
    run: Run,
    cluster: Cluster,
    reporter: ProgressReporter,
    on_epoch: EpochCallback = lambda *_: None,
) -> tuple[TrainResult, list[Fault]]:
    """Train to the end, and load the best weights into the plan's network.

    Args:
        job: Job that is run.
        plan: Plan of the training.
        run: Run that keeps the checkpoints.
        cluster: Cluster to run on.
        reporter: Shows the progress.
        on_epoch: Receives each epoch at least once, also those of the run before a resume.

    Returns:
        The result, and the images that the workers could not decode.
    """
    skipped: list[Fault] = []
    worker_input = job_worker_input(job, plan, run)
    num_images = plan.spec.epochs * len(plan.split.train)
    with reporter.progress("Images", num_images) as bar:
        progress = _FitProgress(plan, bar, num_images)

        def on_event(event: TrainEvent) -> None:
            progress.show(event)
            if isinstance(event, EpochCompleted):
                on_epoch(event.epoch, event.metrics)
            if isinstance(event, ImagesSkipped):
                skipped.extend(
                    Fault(uri, Reason(reason), message) for uri, reason, message in event.images
                )

        run_training(worker_input, ray_folder=run.ray_folder, cluster=cluster, on_event=on_event)
    result = load_best_checkpoint(run.checkpoints, plan.module, epochs=plan.spec.epochs)
    for epoch, metrics in enumerate(result.epochs, start=1):
        on_epoch(epoch, metrics)  # the event of an epoch is lost if its worker dies with it
    return result, skipped


class _FitProgress:
    """Shows the events of training on a bar of images."""

    def __init__(self, plan: TrainPlan, bar: ProgressBar, num_images: int) -> None:
        self._bar, self._num_images = bar, num_images
        self._monitor = plan.monitor
        self._shown, self._num_steps, self._score = 0, 1, ""

    def show(self, event: TrainEvent) -> None:
        """Show an event."""
        if isinstance(event, TrainingStarted):
            self._num_steps = event.num_steps
            self._advance(event.total_steps, f"{event.num_workers} workers")
        elif isinstance(event, StepsCompleted):
            self._advance(event.total_steps, f"loss {event.loss:.3f}{self._score}")
        elif isinstance(event, EpochCompleted):
            title, value = self._monitor.title, event.metrics[self._monitor.metric]
            self._score = f"  epoch {event.epoch}: {title} {value:.4f}"
            self._bar.advance(0, note=f"loss {event.metrics['train_loss']:.3f}{self._score}")

    def _advance(self, total_steps: int, note: str) -> None:
        done = self._num_images * total_steps // self._num_steps
        self._bar.advance(max(0, done - self._shown), note=note)
        self._shown = max(self._shown, done)
