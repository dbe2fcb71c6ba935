"""Callbacks of a training run: a user's own code on the driver, which may stop the run.

class Plot(TrainCallback):
    def on_epoch_end(self, epoch, metrics): ...

train(spec, callbacks=[Plot()])
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from eagleray.training.runs import Run
    from eagleray.training.summary import TrainSummary

__all__ = ["CallbackList", "Decision", "StopTraining", "TrainCallback"]

Decision = Literal["continue", "stop", "abort"]
"""What follows an epoch: the next one, the test of the best one, or nothing, as code has failed."""


class StopTraining(Exception):  # noqa: N818 - as StopIteration, it is no error
    """Raised by a callback to end training after the current epoch."""


class TrainCallback:
    """Base class of callbacks; a subclass overrides what it needs.

    All methods run in the process that called `train`: `on_step` and `on_epoch_end` in a thread,
    one call at a time, while the workers train. Training waits for `on_epoch_end`, and not for
    `on_step`. `on_step` and `on_epoch_end` may raise `StopTraining`: the current epoch is finished,
    and the best epoch is tested and registered. Any other exception ends the run after the current
    epoch, too, and `train` raises it; such a run can be resumed.
    """

    def on_train_start(self, run: Run) -> None:
        """Called once before training.

        Args:
            run: The run, with its name and its folder.
        """

    def on_step(self, step: int, loss: float) -> None:
        """Called at most twice a second, and after the last step of an epoch.

        Args:
            step: Number of steps finished so far, of the whole run.
            loss: Loss of the last step.
        """

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> bool | None:
        """Called once for each epoch, in order; first for the earlier epochs of a resumed run.

        Args:
            epoch: Number of the epoch, from 1.
            metrics: Metrics of the epoch, such as `train_loss` and `validation_accuracy`.

        Returns:
            False to end training, as `StopTraining` does; anything else continues.
        """

    def on_train_end(self, result: TrainSummary) -> None:
        """Called once after the model is tested and registered.

        Args:
            result: What `train` returns.
        """


class CallbackList:
    """The callbacks of one run.

    Args:
        callbacks: The callbacks, in the order in which they are called.
    """

    def __init__(self, callbacks: Sequence[TrainCallback] = ()) -> None:
        self._callbacks = tuple(callbacks)
        self._num_epochs = 0
        self._decision: Decision = "continue"
        self._failure: Exception | None = None

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def start(self, run: Run) -> None:
        """Call `on_train_start`."""
        for callback in self._callbacks:
            callback.on_train_start(run)

    def step(self, step: int, loss: float) -> None:
        """Call `on_step`."""
        self._call(lambda callback: callback.on_step(step, loss))

    def epochs(self, epochs: Sequence[Mapping[str, float]]) -> Decision:
        """Call `on_epoch_end` for the epochs that are new, and return what follows.

        Args:
            epochs: Metrics of all epochs of the run so far.
        """
        while self._num_epochs < len(epochs):
            metrics = epochs[self._num_epochs]
            self._num_epochs += 1
            self._call(functools.partial(_end_epoch, self._num_epochs, metrics))
        return self._decision

    def end(self, result: TrainSummary) -> None:
        """Call `on_train_end`."""
        for callback in self._callbacks:
            callback.on_train_end(result)

    def raise_failure(self) -> None:
        """Raise the first exception of a callback in another thread, if there was one."""
        if self._failure is not None:
            raise self._failure

    def _call(self, call: Callable[[TrainCallback], bool | None]) -> None:
        for callback in self._callbacks:
            try:
                if call(callback) is False and self._decision == "continue":
                    self._decision = "stop"
            except StopTraining:
                if self._decision == "continue":
                    self._decision = "stop"
            except Exception as error:  # noqa: BLE001 - raised again by `raise_failure`
                self._failure = self._failure or error
                self._decision = "abort"


def _end_epoch(epoch: int, metrics: Mapping[str, float], callback: TrainCallback) -> bool | None:
    return callback.on_epoch_end(epoch, metrics)
