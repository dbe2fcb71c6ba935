"""The summary and the page of a tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from eagleray.training.monitor import Monitor
from eagleray.training.spec import TrainSpec
from eagleray.training.tuning.report import ranking_rows, render_tune_page, summarize
from eagleray.training.tuning.search_space import SearchSpace
from eagleray.training.tuning.trials import TuneResult, rank
from tests.support.training import ACCURACY, tracker_with

GIVEN = {"data": "flowers/", "name": "flowers"}
SPACE = SearchSpace(
    GIVEN,
    {
        "learning_rate": FloatDistribution(1e-9, 1, log=True),
        "horizontal_flip": CategoricalDistribution((True, False)),
    },
)


def tuned_with(
    folder: Path, *runs: tuple[str, list[float]], monitor: Monitor = ACCURACY
) -> TuneResult:
    trials = tracker_with(folder, *runs, monitor=monitor).trials
    ranking = tuple(rank(trials, monitor))
    return TuneResult(tuple(trials.values()), ranking, SPACE, monitor, str(folder))


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        (
            [("a", [0.5, 0.6, 0.6]), ("b", [0.4, 0.7, 0.8])],
            "Trial 2 is the best with validation accuracy 0.8000; the default has 0.6000",
        ),
        ([("a", [0.5, 0.6, 0.7]), ("b", [0.7])], "No trial is better"),
        ([("a", [float("nan")]), ("b", [0.7])], "Trial 2 is the best"),
    ],
)
def test_the_summary_compares_with_the_default(
    tmp_path: Path, runs: list[tuple[str, list[float]]], sentence: str
) -> None:
    assert sentence in summarize(tuned_with(tmp_path, *runs))


def test_the_summary_of_a_loss_says_how_much_lower_it_is(tmp_path: Path) -> None:
    loss = Monitor("log_loss", "min")
    tuned = tuned_with(tmp_path, ("a", [0.5, 0.6, 0.6]), ("b", [0.4, 0.3, 0.8]), monitor=loss)
    assert tuned.gain == pytest.approx(0.2)
    assert summarize(tuned) == (
        "Trial 2 is the best with validation log loss 0.3000; the default has 0.5000, which is "
        "0.2000 more."
    )
    page = render_tune_page(tuned, TrainSpec.make(GIVEN), "flowers-1").decode()
    assert "lowest validation log loss" in page


def test_the_page_has_every_trial(tmp_path: Path) -> None:
    tuned = tuned_with(tmp_path, ("a", [0.5, 0.6, 0.6]), ("b", [0.4]), ("c", [0.4, 0.7, 0.8]))
    rows = ranking_rows(tuned)
    assert [(row.rank, row.name, row.score, row.gray) for row in rows] == [
        ("1", "3", "0.8000", False),
        ("2", "1 default", "0.6000", False),
        ("3", "2", "0.4000", True),
    ]
    page = render_tune_page(tuned, TrainSpec.make(GIVEN), "flowers-1").decode()
    assert "best: trial 3" in page
    assert "the default" in page
    assert page.count("<svg") == 2  # the epochs, and the one field that is a number
    assert "7 of 60" in page
