"""The opening of a tuning: the metric that all of its trials are ranked by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from eagleray.core.settings import Settings
from eagleray.training.monitor import Monitor
from eagleray.training.tuning.budget import Budget
from eagleray.training.tuning.job import TrialProgress, open_tune_job
from eagleray.training.tuning.search_space import SearchSpace
from eagleray.training.tuning.trials import Trial, TrialState
from tests.support.reporting import RecordingReporter
from tests.support.training import ACCURACY, epoch_metrics, small_spec, write_stripes

SEARCHED = {"learning_rate": FloatDistribution(1e-4, 1e-1, log=True)}
WEIGHTS = {"class_weights": CategoricalDistribution(("none", "balanced"))}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and one registry for all tests, since making one takes seconds."""
    folder = tmp_path_factory.mktemp("home")
    write_stripes(folder / "stripes")
    return folder


@pytest.mark.parametrize(
    ("fixed", "searched", "name", "mode"),
    [
        ({}, SEARCHED, "accuracy", "max"),
        ({"sampler": "balanced"}, SEARCHED, "recall_macro", "max"),
        ({}, WEIGHTS, "recall_macro", "max"),  # of the trials with weights and of those without
        ({"monitor": "loss"}, WEIGHTS, "loss", "min"),
        ({"monitor": "recall[vertical]", "mode": "min"}, SEARCHED, "recall[vertical]", "min"),
    ],
)
def test_all_trials_and_the_best_specification_have_one_metric(
    home: Path, fixed: dict[str, Any], searched: dict[str, Any], name: str, mode: str
) -> None:
    fields = small_spec(home / "stripes", **fixed).model_dump(exclude=set(searched))
    space = SearchSpace(fields, searched)
    job = open_tune_job(space, Budget(3, 1, 1), Settings(home=home), alias="candidate")
    assert job.default.plan.monitor == Monitor(name, mode)  # type: ignore[arg-type]
    for one in searched.values():
        choices = getattr(one, "choices", (1e-3,))
        specs = [job.space.spec({next(iter(searched)): value}) for value in choices]
        assert {(spec.monitor, spec.mode) for spec in specs} == {(name, mode)}
    assert f"monitor: {name}" in job.space.to_yaml()


def test_progress_counts_the_trials_that_ended_and_the_epochs_that_were_trained() -> None:
    bar = RecordingReporter()
    progress = TrialProgress(bar)

    def update(number: int, *scores: float, state: TrialState = "running") -> None:
        epochs = tuple(epoch_metrics(score) for score in scores)
        progress.update(Trial(number, f"key-{number}", {}, ACCURACY, state, epochs))

    update(1, 0.5)
    update(1, 0.5, 0.75, state="finished")
    update(2, 0.25)
    update(2, 0.25, state="stopped")  # after one of its epochs
    update(2, 0.25, state="stopped")
    update(3, state="failed")
    assert [count for count, _ in bar.advanced] == [0, 1, 0, 1, 0, 1]
    assert bar.bar_notes[0] == "1 epoch, best validation accuracy 0.5000"
    assert bar.bar_notes[-1] == "3 epochs, best validation accuracy 0.7500"
