"""Renders the page of a training run: curves, throughput, epochs and specification."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from eagleray.reports import render_page, series
from eagleray.training.extension import Extension
from eagleray.training.loop.optimizer import learning_rate
from eagleray.training.monitor import Monitor, metric_title
from eagleray.training.result import TrainResult
from eagleray.training.spec import TrainSpec

__all__ = ["downsample", "extension_warning", "overfit_warning", "render_training_page"]

_NUM_WORSE_EPOCHS = 3  # last epochs that must be worse than the best one
_MIN_LOSS_OF_GAIN = 0.1  # fraction of the improvement that must be lost again
_MIN_NOISE_RATIO = 3.0  # standard deviations of an epoch's validation loss
_MAX_POINTS = 1000  # of a curve
_THROUGHPUT = ("images_per_second", "waiting_for_data", "waiting_for_checkpoints")


def overfit_warning(epochs: Sequence[dict[str, float]], monitor: Monitor) -> str | None:
    """Return a warning if the monitored metric got worse at the end while the training loss fell.

    The last epochs must all be worse than the best one by more than the noise of an epoch, and by
    more than a tenth of the improvement from the first epoch to the best one: where the loss was 2
    at first, a rise from 0.012 to 0.015 is not overfitting.
    """
    if len(epochs) <= _NUM_WORSE_EPOCHS:
        return None
    values = np.array([epoch[monitor.metric] for epoch in epochs])
    if not np.isfinite(values).all():
        return None
    training = [epoch["train_loss"] for epoch in epochs]
    costs = values if monitor.mode == "min" else -values
    best = int(costs.argmin())
    rise = costs[-_NUM_WORSE_EPOCHS:].min() - costs[best]
    # The first epoch has learned something when it is validated; its steps show from where on.
    first = epochs[0].get(f"train_{monitor.name}", values[0])
    gain = max(costs[0], first if monitor.mode == "min" else -first) - costs[best]
    # Second differences leave out the trend; those of plain noise have six times its variance.
    noise = np.median(np.abs(np.diff(costs, 2))) / (0.6745 * math.sqrt(6))
    threshold = max(_MIN_LOSS_OF_GAIN * gain, _MIN_NOISE_RATIO * noise)
    if rise <= threshold or training[-1] >= training[best]:
        return None
    return (
        f"The model overfits: since epoch {best + 1} {monitor.title} "
        f"{'rose' if monitor.mode == 'min' else 'fell'} from {values[best]:.4f} to "
        f"{values[-1]:.4f} while the training loss fell from {training[best]:.4f} to "
        f"{training[-1]:.4f}; increase augmentation, weight decay or dropout, or set --patience."
    )


def extension_warning(result: TrainResult, extensions: Sequence[Extension]) -> str | None:
    """Return a warning if no epoch since the last extension of a run is better than one before."""
    if not extensions or result.best.epoch > extensions[-1].epoch:
        return None
    last = extensions[-1]
    same = f", so the new version has the weights of {last.version}" if last.version else ""
    return f"No epoch after the extension is better than epoch {result.best.epoch}{same}."


def render_training_page(
    spec: TrainSpec,
    run: str,
    result: TrainResult,
    monitor: Monitor,
    extensions: Sequence[Extension] = (),
    warnings: Sequence[str] = (),
) -> bytes:
    """Make the page of a finished run.

    Args:
        spec: Specification of the run.
        run: Name of the run.
        result: Result of the run.
        monitor: Metric that selected the best epoch.
        extensions: Extensions of the run, in order.
        warnings: Sentences for the top of the page, such as why the run did not learn.
    """
    overfit = overfit_warning(result.epochs, monitor)
    numbers = list(range(1, len(result.epochs) + 1))
    scores = sorted(
        name
        for name in result.epochs[0]
        if name.startswith("validation_") and name != "validation_loss"
    )
    training = [f"train_{name}" for name in dict.fromkeys(("loss", monitor.name))]
    training = [name for name in training if name in result.epochs[0]]
    steps = downsample(result.losses)
    num_steps = len(result.losses) * spec.epochs // len(result.epochs)
    rates = [learning_rate(spec, step - 1, num_steps, extensions) for step, _ in steps]
    plots = [
        *(
            _epochs_plot(result.epochs, name.removeprefix("train_"), best=result.best.epoch)
            for name in training
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
        facts=_facts(spec, result, monitor),
        plots=plots,
        warnings=[*warnings, *([overfit] if overfit else [])],
        epochs=[
            {"epoch": number, **{name: _format(name, value) for name, value in epoch.items()}}
            for number, epoch in zip(numbers, result.epochs, strict=True)
        ],
        columns=[*training, "validation_loss", *scores, *_THROUGHPUT],
        best=result.best.epoch,
        specification=spec.to_yaml(),
    )


def _epochs_plot(epochs: Sequence[dict[str, float]], name: str, *, best: int) -> str:
    """Plot a metric over the epochs, on the training and on the validation split."""
    lines = {"training": f"train_{name}", "validation": f"validation_{name}"}
    return series(
        list(range(1, len(epochs) + 1)),
        {split: [epoch[key] for epoch in epochs] for split, key in lines.items()},
        title=metric_title(name).capitalize(),
        x_label="epoch",
        mark=best,
    )


def _format(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "images_per_second" else f"{value:.4f}"


def _facts(spec: TrainSpec, result: TrainResult, monitor: Monitor) -> dict[str, str]:
    last = result.epochs[-1]
    reason = f"early stopping (patience {spec.patience})" if spec.patience else "by a callback"
    early = f", stopped: {reason}" if result.ended_early else ""
    facts = {
        "best epoch": f"{result.best.epoch} of {len(result.epochs)}{early}",
        monitor.best_title: f"{result.metrics[monitor.metric]:.4f}",
        "steps": f"{len(result.losses):,}",
        "images per second": f"{last['images_per_second']:,.0f} in the last epoch",
        "waiting for data": f"{last['waiting_for_data']:.4f} of its time",
        "waiting for checkpoints": f"{last['waiting_for_checkpoints']:.4f}",
    }
    if spec.mixes_images:
        facts["training metrics"] = "none but the loss: mixed images have no label"
    return facts


def downsample(losses: Sequence[float]) -> list[tuple[int, float]]:
    """Return (step, mean loss) of at most 1,000 consecutive windows; steps count from 1."""
    size = -(-len(losses) // _MAX_POINTS)
    windows = [losses[start : start + size] for start in range(0, len(losses), size)]
    return [
        (min((index + 1) * size, len(losses)), sum(window) / len(window))
        for index, window in enumerate(windows)
    ]
