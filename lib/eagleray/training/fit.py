"""Trains a plan to the end with a progress bar, and loads the best epoch's weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from eagleray.core.background import import_ahead
from eagleray.core.callbacks import ProgressBar, ProgressReporter
from eagleray.core.errors import Reason
from eagleray.core.ray_session import Cluster
from eagleray.data.inspection import Fault
from eagleray.training.callback import CallbackList
from eagleray.training.events import (
    EpochCompleted,
    ImagesSkipped,
    StepsCompleted,
    TrainEvent,
    TrainingStarted,
)
from eagleray.training.launch import run_training
from eagleray.training.monitor import Monitor, metric_title
from eagleray.training.plan import TrainPlan
from eagleray.training.prepare import TrainJob
from eagleray.training.resources import await_workers
from eagleray.training.result import TrainResult, load_best_checkpoint
from eagleray.training.run_metrics import RunMetrics
from eagleray.training.runs import Run
from eagleray.training.worker_input import WorkerInput, make_worker_input

__all__ = ["EpochCallback", "FitProgress", "fit", "job_worker_input"]

# They take five seconds, in which the workers start. PyTorch's optimizers, of which one fits the
# temperature, import its compiler.
_NEEDED_AFTERWARDS = ("sklearn.metrics", "torch._dynamo", "matplotlib.figure", "mlflow.pyfunc")

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
    *,
    callbacks: CallbackList | None = None,
) -> tuple[TrainResult, list[Fault]]:
    """Train to the end, and load the best weights into the plan's network.

    Args:
        job: Job that is run.
        plan: Plan of the training.
        run: Run that keeps the checkpoints.
        cluster: Cluster to run on.
        reporter: Shows the progress.
        on_epoch: Receives each epoch at least once, also those of the run before a resume.
        callbacks: The user's callbacks, which may stop training.

    Returns:
        The result, and the images that the workers could not decode.
    """
    skipped: list[Fault] = []
    callbacks = callbacks or CallbackList()
    worker_input = job_worker_input(job, plan, run)
    import_ahead(*_NEEDED_AFTERWARDS)
    num_images = plan.spec.epochs * len(plan.split.train)
    with reporter.progress("Images", num_images) as bar:
        progress = FitProgress(plan.spec.epochs, plan.monitor, bar, num_images)
        run_metrics = RunMetrics(run.name, epochs=plan.spec.epochs, num_images=num_images)

        def on_event(event: TrainEvent) -> None:
            progress.show(event)
            run_metrics.on_event(event)
            if isinstance(event, StepsCompleted):
                callbacks.step(event.total_steps, event.loss)
            if isinstance(event, EpochCompleted):
                on_epoch(event.epoch, event.metrics)
            if isinstance(event, ImagesSkipped):
                skipped.extend(
                    Fault(uri, Reason(reason), message) for uri, reason, message in event.images
                )

        await_workers(plan.spec, cluster, reporter)
        run_training(
            worker_input,
            ray_folder=run.ray_folder,
            cluster=cluster,
            on_event=on_event,
            decide=callbacks.epochs if callbacks else None,
        )
    callbacks.raise_failure()
    result = load_best_checkpoint(run.checkpoints, plan.module, epochs=plan.spec.epochs)
    for epoch, metrics in enumerate(result.epochs, start=1):
        # The event of an epoch is lost if its worker dies with it.
        progress.show_epoch(epoch, metrics)
        on_epoch(epoch, metrics)
    callbacks.epochs(result.epochs)
    callbacks.raise_failure()
    return result, skipped


class FitProgress:
    """Shows the events of training: a bar of images, and a line for each epoch.

    Args:
        epochs: Number of epochs of the run.
        monitor: Metric that selects the best epoch.
        bar: Bar of images.
        num_images: Number of images of all epochs.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        epochs: int,
        monitor: Monitor,
        bar: ProgressBar,
        num_images: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._epochs, self._monitor, self._clock = epochs, monitor, clock
        self._bar, self._num_images = bar, num_images
        self._num_advanced, self._num_steps, self._score = 0, epochs, ""
        self._last_epoch = epochs  # no epoch of an earlier process is shown
        self._first_epoch, self._started = epochs, clock()

    def show(self, event: TrainEvent) -> None:
        """Show an event."""
        if isinstance(event, TrainingStarted):
            self._start(event)
        elif isinstance(event, StepsCompleted):
            self._advance(event.total_steps, f"loss {event.loss:.3f}{self._score}")
        elif isinstance(event, EpochCompleted):
            self.show_epoch(event.epoch, event.metrics)

    def show_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Print the line of an epoch, once."""
        if epoch <= self._last_epoch:
            return
        self._last_epoch = epoch
        metric = self._monitor.metric
        self._score = f"  epoch {epoch}: {self._monitor.title} {metrics[metric]:.4f}"
        self._bar.advance(0, note=f"loss {metrics['train_loss']:.3f}{self._score}")
        names = dict.fromkeys(("train_loss", "validation_loss", metric))
        figures = [f"{metric_title(name)} {metrics[name]:.4f}" for name in names]
        figures.append(f"{metrics['images_per_second']:,.0f} images/s")
        if epoch < self._epochs:
            seconds = (self._clock() - self._started) / (epoch - self._first_epoch)
            left = timedelta(seconds=round(seconds * (self._epochs - epoch)))
            figures.append(f"ETA {left}")
        self._bar.line(f"epoch {epoch}/{self._epochs}: {', '.join(figures)}")

    def _start(self, event: TrainingStarted) -> None:
        self._num_steps = event.num_steps
        steps_per_epoch = event.num_steps // self._epochs
        self._first_epoch = self._last_epoch = event.total_steps // steps_per_epoch
        self._started = self._clock()
        workers = "1 worker" if event.num_workers == 1 else f"{event.num_workers} workers"
        epochs = "1 epoch" if self._epochs == 1 else f"{self._epochs:,} epochs"
        place = f", from step {event.total_steps + 1:,} on" if event.total_steps else ""
        self._bar.line(f"training on {workers}: {epochs} of {steps_per_epoch:,} steps{place}")
        self._advance(event.total_steps, workers)

    def _advance(self, total_steps: int, note: str) -> None:
        done = self._num_images * total_steps // self._num_steps
        self._bar.advance(max(0, done - self._num_advanced), note=note)
        self._num_advanced = max(self._num_advanced, done)
