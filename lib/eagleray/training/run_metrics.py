"""Publishes the progress of a training run as metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from eagleray.core.job_metrics import JobMetrics
from eagleray.training.events import EpochCompleted, StepsCompleted, TrainEvent, TrainingStarted

__all__ = ["RunMetrics"]


class RunMetrics:
    """The metrics of one training run.

    Args:
        run: Name of the run.
        epochs: Number of epochs of the run.
        num_images: Number of images of all epochs.
    """

    def __init__(self, run: str, *, epochs: int, num_images: int) -> None:
        self._metrics = JobMetrics("train", run)
        self._epochs, self._num_images = epochs, num_images
        self._num_starts, self._num_steps = 0, 0

    def on_event(self, event: TrainEvent) -> None:
        """Publish what an event says."""
        if isinstance(event, TrainingStarted):
            self._start(event)
        elif isinstance(event, StepsCompleted):
            self._metrics.set("loss", event.loss, split="train")
            self._advance(event.total_steps)
        elif isinstance(event, EpochCompleted):
            self._metrics.set("epochs_done", event.epoch)
            self._metrics.set("loss", event.metrics["validation_loss"], split="validation")

    def _start(self, event: TrainingStarted) -> None:
        self._num_starts += 1
        self._num_steps = event.num_steps
        values: Mapping[str, int] = {
            "images": self._num_images,
            "epochs": self._epochs,
            "epochs_done": self._epochs * event.total_steps // event.num_steps,
            "restarts": self._num_starts - 1,
            "workers": event.num_workers,
        }
        for name, value in values.items():
            self._metrics.set(name, value)
        self._advance(event.total_steps)

    def _advance(self, total_steps: int) -> None:
        self._metrics.set("images_done", self._num_images * total_steps // self._num_steps)
