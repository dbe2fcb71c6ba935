"""The learning rate that a range test suggests."""

from __future__ import annotations

import math

import numpy as np

from eagleray.training.lr_finder import suggest_learning_rate

RATES = np.geomspace(1e-6, 1.0, 100).tolist()


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    losses = [2 - 1.5 / (1 + math.exp(-(number - 60) / 4)) for number in range(100)]
    suggestion = suggest_learning_rate(tuple(zip(RATES, losses, strict=True)))
    # The smoothed loss lags behind the loss, whose slope is steepest at step 60.
    assert suggestion.learning_rate is not None
    assert 60 <= RATES.index(suggestion.learning_rate) <= 70
    assert suggestion.rates == tuple(RATES)
    assert len(suggestion.losses) == 100


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    rising = tuple((rate, 1.0 + number) for number, rate in enumerate(RATES))
    assert suggest_learning_rate(rising).learning_rate is None
    assert suggest_learning_rate(rising[:2]).learning_rate is None
