"""The opening of a tuning: the metric that all of its trials are ranked by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from eagleray.core.settings import Settings
from eagleray.training.budget import Budget
from eagleray.training.monitor import Monitor
from eagleray.training.search_space import SearchSpace
from eagleray.training.tune_job import open_tune_job
from tests.support.training import small_spec, write_stripes

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
