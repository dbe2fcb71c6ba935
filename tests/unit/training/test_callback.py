"""Callbacks are called once for each epoch, in order, and decide what follows it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from eagleray import StopTraining, TrainCallback
from eagleray.training.callback import CallbackList

EPOCHS = [{"validation_accuracy": 0.1 * number} for number in range(1, 6)]


class Recorder(TrainCallback):
    """Writes down what it is called with, and acts at one epoch."""

    def __init__(self, at: int = 0, answer: bool | Exception | None = None) -> None:
        self.seen: list[int] = []
        self._at, self._answer = at, answer

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> bool | None:
        assert metrics["validation_accuracy"] == pytest.approx(0.1 * epoch)
        self.seen.append(epoch)
        if epoch != self._at:
            return True
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def test_each_epoch_is_seen_once_and_in_order() -> None:
    recorder = Recorder()
    callbacks = CallbackList([recorder])
    assert callbacks.epochs(EPOCHS[:2]) == "continue"  # a resumed run has earlier epochs
    assert callbacks.epochs(EPOCHS[:2]) == "continue"  # a worker that died asks again
    assert callbacks.epochs(EPOCHS) == "continue"
    assert recorder.seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("answer", [False, StopTraining()])
def test_a_callback_stops_training_and_the_others_are_still_called(
    answer: bool | Exception,
) -> None:
    recorder = Recorder()
    callbacks = CallbackList([Recorder(2, answer), recorder])
    assert callbacks.epochs(EPOCHS[:1]) == "continue"
    assert callbacks.epochs(EPOCHS[:2]) == "stop"
    assert callbacks.epochs(EPOCHS[:2]) == "stop"
    assert recorder.seen == [1, 2]
    callbacks.raise_failure()


def test_an_exception_ends_the_run_and_is_kept() -> None:
    callbacks = CallbackList([Recorder(1, ValueError("a bug")), Recorder(1, False)])
    assert callbacks.epochs(EPOCHS[:1]) == "abort"
    with pytest.raises(ValueError, match="a bug"):
        callbacks.raise_failure()


def test_a_step_stops_training_after_its_epoch() -> None:
    class Impatient(TrainCallback):
        def on_step(self, step: int, loss: float) -> None:
            if step > 3 and loss > 1:
                raise StopTraining

    callbacks = CallbackList([Impatient()])
    callbacks.step(3, 2.0)
    assert callbacks.epochs(EPOCHS[:1]) == "continue"
    callbacks.step(4, 2.0)
    assert callbacks.epochs(EPOCHS[:2]) == "stop"
