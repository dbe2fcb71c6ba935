"""The page of a training run: its curves, what it was asked, and where its time went."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from eagleray.reports import render_page, series
from eagleray.training.launch import TrainResult
from eagleray.training.lr_finder import LearningRateSuggestion
from eagleray.training.optimizer import learning_rate
from eagleray.training.spec import TrainSpec

__all__ = ["overfit_warning", "render_range_page", "render_training_page"]

_LOOK_BACK = 3  # epochs in a row that must be worse
_MATTERS = 0.1  # of what was learned, that is lost again
_NOISE = 3.0  # standard deviations of an epoch's validation loss
_MAX_POINTS = 1000  # of a curve
_SPEEDS = ("images_per_second", "waiting_for_data", "waiting_for_checkpoints")


def overfit_warning(epochs: Sequence[dict[str, float]]) -> str | None:
    """Say so when the validation loss has risen to the end while the training loss fell.

    It counts where the last epochs are all above the best one by more than the noise of an epoch,
    and by more than a tenth of what was gained from the first epoch to the best one: a loss of
    0.012 that becomes 0.015 was 2 at first, and nothing is lost.
    """
    if len(epochs) <= _LOOK_BACK:
        return None
    validation = np.array([epoch["validation_loss"] for epoch in epochs])
    training = [epoch["train_loss"] for epoch in epochs]
    best = int(validation.argmin())
    rise = validation[-_LOOK_BACK:].min() - validation[best]
    gain = max(validation[0], training[0]) - validation[best]
    # Second differences leave out the trend; those of plain noise have six times its variance.
    noise = np.median(np.abs(np.diff(validation, 2))) / (0.6745 * math.sqrt(6))
    if rise <= max(_MATTERS * gain, _NOISE * noise) or training[-1] >= training[best]:
        return None
    return (
        f"It overfits: since epoch {best + 1} the validation loss rose from {validation[best]:.4f} "
        f"to {validation[-1]:.4f} while the training loss fell from {training[best]:.4f} to "
        f"{training[-1]:.4f}; take more augmentation, weight decay or dropout, or --patience."
    )


def render_training_page(spec: TrainSpec, run: str, trained: TrainResult) -> bytes:
    """Make the page of a finished run.

    Args:
        spec: What was asked.
        run: Its name.
        trained: How it went.
    """
    numbers = list(range(1, len(trained.epochs) + 1))
    scores = sorted(
        name
        for name in trained.epochs[0]
        if name.startswith("validation_") and name != "validation_loss"
    )
    steps = _thinned(trained.losses)
    num_steps = len(trained.losses) * spec.epochs // len(trained.epochs)
    rates = [learning_rate(spec, step - 1, num_steps) for step, _ in steps]
    plots = [
        series(
            numbers,
            {
                name: [epoch[f"{key}_loss"] for epoch in trained.epochs]
                for name, key in (("training", "train"), ("validation", "validation"))
            },
            title="Loss",
            x_label="epoch",
        ),
        series(
            numbers,
            {
                name.removeprefix("validation_"): [epoch[name] for epoch in trained.epochs]
                for name in scores
            },
            title="On the validation part",
            x_label="epoch",
        ),
        series(
            [step for step, _ in steps],
            {"loss": [loss for _, loss in steps]},
            title="Loss of each step",
            x_label="step",
        ),
        series([step for step, _ in steps], {"rate": rates}, title="Learning rate", x_label="step"),
    ]
    return render_page(
        "training.html.j2",
        title=f"Training run {run}",
        facts=_facts(spec, trained),
        plots=plots,
        warning=overfit_warning(trained.epochs),
        epochs=[
            {"epoch": number, **epoch}
            for number, epoch in zip(numbers, trained.epochs, strict=True)
        ],
        columns=["train_loss", "validation_loss", *scores, *_SPEEDS],
        best=trained.best.epoch,
        specification=spec.to_yaml(),
    )


def _facts(spec: TrainSpec, trained: TrainResult) -> dict[str, str]:
    last = trained.epochs[-1]
    early = f", stopped early (patience {spec.patience})" if trained.ended_early else ""
    return {
        "best epoch": f"{trained.best.epoch} of {len(trained.epochs)}{early}",
        "steps": f"{len(trained.losses):,}",
        "images per second": f"{last['images_per_second']:,.0f} in the last epoch",
        "waiting for data": f"{last['waiting_for_data']:.1%} of its time",
        "waiting for checkpoints": f"{last['waiting_for_checkpoints']:.1%}",
    }


def render_range_page(suggestion: LearningRateSuggestion, title: str) -> bytes:
    """Make the page of learning rates that were tried."""
    plot = series(
        suggestion.rates,
        {"smoothed loss": suggestion.losses},
        title="Loss while the learning rate rises",
        x_label="learning rate",
        logarithmic=True,
        mark=suggestion.learning_rate,
    )
    found = suggestion.learning_rate
    return render_page(
        "training.html.j2",
        title=title,
        facts={"suggested": "none: the loss never fell" if found is None else f"{found:.2g}"},
        plots=[plot],
        warning=None,
        epochs=[],
        columns=[],
        best=0,
        specification="",
    )


def _thinned(losses: Sequence[float]) -> list[tuple[int, float]]:
    """Return (step, mean loss) of as many stretches as a plot can show."""
    stretch = -(-len(losses) // _MAX_POINTS)
    parts = [losses[start : start + stretch] for start in range(0, len(losses), stretch)]
    return [
        (min((index + 1) * stretch, len(losses)), sum(part) / len(part))
        for index, part in enumerate(parts)
    ]
