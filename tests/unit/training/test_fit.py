"""The progress of training, as people and logs see it."""

from __future__ import annotations

from eagleray.training.events import EpochCompleted, StepsCompleted, TrainingStarted
from eagleray.training.fit import FitProgress
from eagleray.training.monitor import Monitor
from tests.support.reporting import RecordingReporter


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def metrics(epoch: int) -> dict[str, float]:
    return {
        "train_loss": 1 / epoch,
        "validation_loss": 2 / epoch,
        "validation_recall_macro": 1 - 0.5**epoch,
        "images_per_second": 1234.4,
    }


def progress_of(epochs: int) -> tuple[FitProgress, RecordingReporter, Clock]:
    bar, clock = RecordingReporter(), Clock()
    monitor = Monitor("recall_macro", "max")
    return FitProgress(epochs, monitor, bar, 80 * epochs, clock=clock), bar, clock


def test_each_epoch_is_a_line_with_its_figures() -> None:
    progress, bar, clock = progress_of(3)
    progress.show(TrainingStarted(total_steps=0, num_steps=30, num_workers=1))
    for epoch in (1, 2, 3):
        clock.now = 60.0 * epoch
        progress.show(StepsCompleted(total_steps=10 * epoch, loss=0.1))
        progress.show(EpochCompleted(epoch, metrics(epoch)))
        progress.show_epoch(epoch, metrics(epoch))  # as the result has it
    assert bar.lines == [
        "training on 1 worker: 3 epochs of 10 steps",
        "epoch 1/3: train loss 1.0000, validation loss 2.0000, validation recall macro 0.5000, "
        "1,234 images/s, ETA 0:02:00",
        "epoch 2/3: train loss 0.5000, validation loss 1.0000, validation recall macro 0.7500, "
        "1,234 images/s, ETA 0:01:00",
        "epoch 3/3: train loss 0.3333, validation loss 0.6667, validation recall macro 0.8750, "
        "1,234 images/s",
    ]
    assert sum(count for count, _ in bar.advanced) == 240


def test_a_resumed_run_shows_the_epochs_of_this_process_only() -> None:
    progress, bar, clock = progress_of(4)
    progress.show(TrainingStarted(total_steps=25, num_steps=40, num_workers=2))
    clock.now = 30.0
    progress.show(EpochCompleted(3, metrics(3)))
    for epoch in (1, 2, 3, 4):  # the event of the last one was lost with its worker
        progress.show_epoch(epoch, metrics(epoch))
    assert bar.lines[0] == "training on 2 workers: 4 epochs of 10 steps, from step 26 on"
    assert [line.partition(":")[0] for line in bar.lines[1:]] == ["epoch 3/4", "epoch 4/4"]
    assert bar.lines[1].endswith("ETA 0:00:30")


def test_a_run_that_had_ended_shows_no_epoch_again() -> None:
    progress, bar, _ = progress_of(2)
    for epoch in (1, 2):
        progress.show_epoch(epoch, metrics(epoch))
    assert bar.lines == []
