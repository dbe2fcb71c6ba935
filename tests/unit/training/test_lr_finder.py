"""The learning rate that a range test suggests."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from eagleray.training.lr_finder import record_range_test, suggest_learning_rate
from eagleray.training.runs import create_run
from tests.support.models import registry_in
from tests.support.training import small_spec

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


def test_a_search_keeps_its_curve_and_its_page(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    run = create_run(registry.settings, small_spec("data"))
    losses = [2 - 1.5 / (1 + math.exp(-(number - 60) / 4)) for number in range(100)]
    with registry.start_run(run.name) as tracked:
        suggestion = record_range_test(tracked, run, tuple(zip(RATES, losses, strict=True)))
    assert suggestion.learning_rate is not None
    assert f"{suggestion.learning_rate:.2g}" in Path(run.page("learning-rate")).read_text()
    assert registry.artifacts.names(tracked.run_id, "pages") == ["pages/learning-rate.html"]
    found = registry.client.get_run(tracked.run_id).data.metrics
    assert found["suggested_learning_rate"] == pytest.approx(suggestion.learning_rate)
    rates = registry.client.get_metric_history(tracked.run_id, "learning_rate")
    assert [(rate.step, rate.value) for rate in rates] == list(enumerate(RATES, start=1))
    steps = registry.client.get_metric_history(tracked.run_id, "train_loss_step")
    assert [step.value for step in steps] == pytest.approx(losses)
