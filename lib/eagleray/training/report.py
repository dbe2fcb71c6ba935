"""Renders the page of a training run: curves, throughput, epochs and specification."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from eagleray.reports import render_page, series
from eagleray.training.optimizer import learning_rate
from eagleray.training.result import TrainResult
from eagleray.training.spec import TrainSpec

__all__ = ["overfit_warning", "render_training_page"]

_NUM_WORSE_EPOCHS = 3  # last epochs that must be worse than the best one
_MIN_LOSS_OF_GAIN = 0.1  # fraction of the improvement that must be lost again
_MIN_NOISE_RATIO = 3.0  # standard deviations of an epoch's validation loss
_MAX_POINTS = 1000  # of a curve
_THROUGHPUT = ("images_per_second", "waiting_for_data", "waiting_for_checkpoints")


def overfit_warning(epochs: Sequence[dict[str, float]]) -> str | None:
    """Return a warning if the validation loss rose at the end while the training loss fell.

    The last epochs must all be above the best one by more than the noise of an epoch, and by more
    than a tenth of the improvement from the first epoch to the best one: where the loss was 2 at
    first, a rise from 0.012 to 0.015 is not overfitting.
    """
    if len(epochs) <= _NUM_WORSE_EPOCHS:
        return None
    validation = np.array([epoch["validation_loss"] for epoch in epochs])
    training = [epoch["train_loss"] for epoch in epochs]
    best = int(validation.argmin())
    rise = validation[-_NUM_WORSE_EPOCHS:].min() - validation[best]
    gain = max(validation[0], training[0]) - validation[best]
    # Second differences leave out the trend; those of plain noise have six times its variance.
    noise = np.median(np.abs(np.diff(validation, 2))) / (0.6745 * math.sqrt(6))
    threshold = max(_MIN_LOSS_OF_GAIN * gain, _MIN_NOISE_RATIO * noise)
    if rise <= threshold or training[-1] >= training[best]:
        return None
    return (
        f"The model overfits: since epoch {best + 1} the validation loss rose from "
        f"{validation[best]:.4f} to {validation[-1]:.4f} while the training loss fell from "
        f"{training[best]:.4f} to {training[-1]:.4f}; increase augmentation, weight decay or "
        "dropout, or set --patience."
    )


def render_training_page(spec: TrainSpec, run: str, result: TrainResult) -> bytes:
    """Make the page of a finished run.

    Args:
        spec: Specification of the run.
        run: Name of the run.
        result: Result of the run.
    """
    numbers = list(range(1, len(result.epochs) + 1))
    scores = sorted(
        name
        for name in result.epochs[0]
        if name.startswith("validation_") and name != "validation_loss"
    )
    steps = _downsample(result.losses)
    num_steps = len(result.losses) * spec.epochs // len(result.epochs)
    rates = [learning_rate(spec, step - 1, num_steps) for step, _ in steps]
    plots = [
        series(
            numbers,
            {
                name: [epoch[f"{key}_loss"] for epoch in result.epochs]
                for name, key in (("training", "train"), ("validation", "validation"))
            },
            title="Loss",
            x_label="epoch",
        ),
        series(
            numbers,
            {
                name.removeprefix("validation_"): [epoch[name] for epoch in result.epochs]
                for name in scores
            },
            title="Validation metrics",
            x_label="epoch",
        ),
        series(
            [step for step, _ in steps],
            {"loss": [loss for _, loss in steps]},
            title="Training loss by step",
            x_label="step",
        ),
        series([step for step, _ in steps], {"rate": rates}, title="Learning rate", x_label="step"),
    ]
    return render_page(
        "training.html.j2",
        title=f"Training run {run}",
        facts=_facts(spec, result),
        plots=plots,
        warning=overfit_warning(result.epochs),
        epochs=[
            {"epoch": number, **epoch} for number, epoch in zip(numbers, result.epochs, strict=True)
        ],
        columns=["train_loss", "validation_loss", *scores, *_THROUGHPUT],
        best=result.best.epoch,
        specification=spec.to_yaml(),
    )


def _facts(spec: TrainSpec, result: TrainResult) -> dict[str, str]:
    last = result.epochs[-1]
    reason = f"early stopping (patience {spec.patience})" if spec.patience else "by a callback"
    early = f", stopped: {reason}" if result.ended_early else ""
    return {
        "best epoch": f"{result.best.epoch} of {len(result.epochs)}{early}",
        "steps": f"{len(result.losses):,}",
        "images per second": f"{last['images_per_second']:,.0f} in the last epoch",
        "waiting for data": f"{last['waiting_for_data']:.1%} of its time",
        "waiting for checkpoints": f"{last['waiting_for_checkpoints']:.1%}",
    }


def _downsample(losses: Sequence[float]) -> list[tuple[int, float]]:
    """Return (step, mean loss) of at most `_MAX_POINTS` consecutive windows."""
    size = -(-len(losses) // _MAX_POINTS)
    windows = [losses[start : start + size] for start in range(0, len(losses), size)]
    return [
        (min((index + 1) * size, len(losses)), sum(window) / len(window))
        for index, window in enumerate(windows)
    ]
