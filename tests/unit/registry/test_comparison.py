"""Versions compared on the same images, or on their own test sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eagleray.evaluation.predictions import ImagePredictions
from eagleray.registry.comparison import ComparedVersion, Comparison, compare
from eagleray.registry.registry import ModelVersion, Registry
from tests.support.models import LINEAGE
from tests.support.registry import EASY, HARD, evaluated, register


def compared(registry: Registry, versions: list[ModelVersion]) -> Comparison:
    return compare(registry, [ComparedVersion.read(registry, version) for version in versions])


def test_metrics_on_the_same_images_are_compared(registry: Registry, name: str) -> None:
    versions = register(registry, name, 2)
    for version, accuracy in zip(versions, (0.5, 0.75), strict=True):
        evaluated(registry, version, accuracy)
    comparison = compared(registry, versions)
    assert comparison.same_images is True
    assert comparison.measured_on == "parts/test"
    shown = comparison.as_json()
    assert shown["versions"] == [f"{name}/1", f"{name}/2"]
    assert shown["metrics"]["accuracy"] == {
        "values": [0.5, 0.75],
        "differences": [{"value": 0.25, "interval": None, "p_value": None}],
    }
    assert shown["facts"]["architecture"] == {"values": ["lenet5", "lenet5"], "same": True}
    assert shown["facts"]["package"]["same"] is False


def predictions_of(right: int, *, rows: range = range(100)) -> ImagePredictions:
    """Return predictions that are right of the first of 100 images."""
    targets = torch.arange(100) % 3
    guessed = torch.where(torch.arange(100) < right, targets, (targets + 1) % 3)
    outputs = torch.nn.functional.one_hot(guessed, 3).float() * 0.8 + 0.05
    kept = list(rows)
    return ImagePredictions(np.array(kept), outputs[kept], targets[kept])


def test_kept_predictions_give_intervals_and_p_values_of_the_differences(
    registry: Registry, name: str
) -> None:
    versions = register(registry, name, 3)
    for version, right in zip(versions, (60, 90, 61), strict=True):
        evaluated(registry, version, right / 100, predictions=predictions_of(right))
    rows = {row.metric: row for row in compared(registry, versions).metrics}
    clear, slight = rows["accuracy"].differences
    assert clear is not None
    assert slight is not None
    assert clear.value == pytest.approx(0.3)
    assert clear.interval is not None
    assert 0.2 < clear.interval.low < 0.3 < clear.interval.high < 0.4
    assert clear.p_value is not None
    assert clear.p_value < 0.01
    assert slight.p_value is not None
    assert slight.p_value > 0.3
    assert rows["f1_macro"].differences[0] is not None
    assert list(rows)[:2] == ["accuracy", "f1_macro"]


def test_images_that_no_version_learned_from_are_preferred(registry: Registry, name: str) -> None:
    versions = register(registry, name, 2)
    sentence = "9 of these 100 images taught it."
    for version, leaked in zip(versions, (0, 9), strict=True):
        evaluated(registry, version, 0.9)
        marked: dict[str, Any] = {"num_leaked": leaked, "leakage": sentence * bool(leaked)}
        later = "2026-05-05T00:00:00+00:00"
        evaluated(registry, version, 0.99, digest=HARD, data="hard", created=later, **marked)
    assert compared(registry, versions).measured_on == "parts/test"
    (third,) = register(registry, name, lineage=LINEAGE.model_copy(update={"note": "x"}))
    evaluated(registry, third, 0.5, digest=HARD, data="hard")
    comparison = compared(registry, [*versions, third])
    assert (comparison.measured_on, comparison.leakage) == ("hard", (sentence,))


def test_settings_of_training_that_differ_are_listed(registry: Registry, name: str) -> None:
    versions = register(registry, name, 3)
    for version, text in zip(versions, ("epochs: 5\nseed: 1", "epochs: 9\nseed: 1"), strict=False):
        registry.artifacts.write(str(version.run_id), "spec.yaml", text)
    shown = compared(registry, versions).as_json()
    assert shown["hyperparameters"] == {"epochs": [5, 9, None]}


@pytest.mark.parametrize(
    ("tests", "same"),
    [
        ((EASY, EASY), True),
        ((EASY, HARD), False),
        ((EASY, None), None),
        ((None, None), None),
    ],
)
def test_without_evaluations_the_test_sets_say_whether_figures_compare(
    registry: Registry, name: str, tests: tuple[str | None, str | None], same: bool | None
) -> None:
    versions = [
        register(registry, name, lineage=LINEAGE.model_copy(update={"test_digest": test}))[0]
        for test in tests
    ]
    comparison = compared(registry, versions)
    assert (comparison.same_images, comparison.measured_on) == (same, None)
    assert [row.metric for row in comparison.metrics] == ["accuracy"]
