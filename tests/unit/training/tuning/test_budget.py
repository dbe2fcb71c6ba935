"""The budget of a tuning and the resources of its trials."""

from __future__ import annotations

from typing import Any

import pytest

from eagleray.core.errors import InputError
from eagleray.core.ray_session import Cluster
from eagleray.training.spec import TrainSpec
from eagleray.training.tuning.budget import Budget, require_budget, share_cluster

GIVEN = {"data": "flowers/", "name": "flowers"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"workers": 2}, "a trial is one process"),
        ({"folds": 3}, "trials are compared on one split"),
        ({"epochs": 2}, "--grace-epochs 3 is more than the 2 epochs"),
    ],
)
def test_an_impossible_budget_is_refused_in_one_sentence(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        require_budget(Budget(4, None, 3), TrainSpec.make({**GIVEN, **fields}))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("grace", "epochs", "expected"), [(None, 1, 1), (None, 6, 2), (None, 20, 5), (3, 20, 3)]
)
def test_the_grace_period_outlasts_the_warmup(
    grace: int | None, epochs: int, expected: int
) -> None:
    assert Budget(4, None, grace).grace_period(epochs) == expected


@pytest.mark.parametrize(
    ("cluster", "at_once", "expected"),
    [
        (Cluster(8, 0, True), None, (8, {"cpu": 1})),
        (Cluster(8, 0, True), 2, (2, {"cpu": 4})),
        (Cluster(2, 0, True), 50, (2, {"cpu": 1})),
        (Cluster(16, 0, False, num_nodes=4), 1, (1, {"cpu": 4})),
        (Cluster(16, 2, True), None, (2, {"cpu": 8, "gpu": 1})),
    ],
)
def test_trials_share_the_cluster(
    cluster: Cluster, at_once: int | None, expected: tuple[int, dict[str, float]]
) -> None:
    assert share_cluster(TrainSpec.make(GIVEN), Budget(20, at_once, 1), cluster) == expected
