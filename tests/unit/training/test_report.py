"""The overfitting warning of a run."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.training.report import overfit_warning


def warning(validation: list[float], training: list[float]) -> str | None:
    epochs = zip(validation, training, strict=True)
    return overfit_warning([{"validation_loss": v, "train_loss": t} for v, t in epochs])


FALLING = np.geomspace(2.0, 0.001, 30).tolist()


def test_a_rising_validation_loss_is_reported_with_its_numbers() -> None:
    validation = [*np.linspace(2.0, 1.0, 10), *np.linspace(1.02, 1.4, 20)]
    said = warning(validation, FALLING)
    assert said is not None
    assert "since epoch 10 the validation loss rose from 1.0000 to 1.4000" in said


def test_overfitting_from_the_first_epoch_is_reported() -> None:
    said = warning([0.5, 0.6, 0.7, 0.8, 0.9], [1.2, 0.5, 0.3, 0.2, 0.1])
    assert said is not None
    assert "since epoch 1 " in said


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
