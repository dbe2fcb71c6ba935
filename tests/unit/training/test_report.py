"""The overfitting warning of a run, and its page."""

from __future__ import annotations

import re

import numpy as np
import pytest

from eagleray.training.loop.checkpoint import BestEpoch
from eagleray.training.monitor import Monitor
from eagleray.training.report import overfit_warning, render_training_page
from eagleray.training.result import TrainResult
from tests.support.training import small_spec

LOSS = Monitor("loss", "min")


def warning(validation: list[float], training: list[float], monitor: Monitor = LOSS) -> str | None:
    epochs = zip(validation, training, strict=True)
    return overfit_warning([{monitor.metric: v, "train_loss": t} for v, t in epochs], monitor)


FALLING = np.geomspace(2.0, 0.001, 30).tolist()


def test_a_rising_validation_loss_is_reported_with_its_numbers() -> None:
    validation = [*np.linspace(2.0, 1.0, 10), *np.linspace(1.02, 1.4, 20)]
    said = warning(validation, FALLING)
    assert said is not None
    assert "since epoch 10 validation loss rose from 1.0000 to 1.4000" in said


def test_overfitting_from_the_first_epoch_is_reported() -> None:
    said = warning([0.5, 0.6, 0.7, 0.8, 0.9], [1.2, 0.5, 0.3, 0.2, 0.1])
    assert said is not None
    assert "since epoch 1 " in said


def test_the_monitored_metric_decides_and_not_the_loss() -> None:
    accuracy = Monitor("accuracy", "max")
    falling = [*np.linspace(0.3, 0.9, 10), *np.linspace(0.88, 0.7, 20)]
    said = warning(falling, FALLING, accuracy)
    assert said is not None
    assert "since epoch 10 validation accuracy fell from 0.9000 to 0.7000 while the" in said
    assert warning(np.linspace(0.3, 0.9, 30).tolist(), FALLING, accuracy) is None
    assert warning([*falling[:-1], float("nan")], FALLING, accuracy) is None


def test_the_page_names_the_metric_its_mode_and_the_best_epoch() -> None:
    epochs = tuple(
        {
            "train_loss": 2.0 / number,
            "train_recall_macro": 0.2 * number,
            "validation_loss": 0.123456,
            "validation_accuracy": 0.9,
            "validation_recall_macro": 0.75 - 0.1 * number,
            "images_per_second": 1234.5,
            "waiting_for_data": 0.00125,
            "waiting_for_checkpoints": 0.0,
        }
        for number in (1, 2)
    )
    result = TrainResult(BestEpoch(1, epochs[0]), epochs, (3.0, 2.0, 1.0, 0.5), ended_early=False)
    spec = small_spec("d", epochs=2, sampler="balanced")
    page = render_training_page(spec, "r", result, Monitor("recall_macro", "max")).decode()
    tiles = dict(re.findall(r'<div class="tile">([^<]+)<b>([^<]+)</b>', page))
    assert tiles["best epoch"] == "1 of 2"
    assert tiles["highest validation recall macro"] == "0.6500"
    assert tiles["waiting for data"] == "0.0013 of its time"  # as in the table of epochs
    cells = re.findall(r'<td class="number">([^<]+)</td>', page)
    expected = ["1 (best)", "2.0000", "0.2000", "0.1235", "0.9000", "0.6500", "1,234", "0.0013"]
    assert cells[: len(expected)] == expected
    mixed = small_spec("d", epochs=2, mixup=0.2)
    assert (
        "mixed images have no label"
        in render_training_page(mixed, "r", result, Monitor("accuracy", "max")).decode()
    )


@pytest.mark.parametrize(
    ("validation", "training"),
    [
        # As of the demo: all but nothing is lost of what was learned, though a loss grows by half.
        ([*np.geomspace(2.0, 0.012, 20), *np.linspace(0.013, 0.018, 10)], FALLING),
        # A rise that the epochs' own noise explains.
        ([2.0, 1.0, 1.5, 0.9, 1.6, 0.8, 1.5, 1.1, 1.0, 1.2], FALLING[:10]),
        # The last epochs are not all worse.
        ([*np.linspace(2.0, 1.0, 10), *np.linspace(1.02, 1.4, 18), 1.0, 1.4], FALLING),
        # What was learned is unlearned by both.
        ([*np.linspace(2.0, 1.0, 10), *np.linspace(1.1, 2.0, 20)], [*FALLING[:10], *[0.9] * 20]),
        ([0.5, 0.9, 1.3], [1.0, 0.5, 0.1]),
    ],
    ids=["demo", "noise", "back again", "diverges", "short"],
)
def test_other_curves_are_not_reported(validation: list[float], training: list[float]) -> None:
    assert warning(validation, training) is None
