"""Two versions compared on the same images, or on their own test sets."""

from __future__ import annotations

import pytest

from eagleray.registry.comparison import ComparedVersion, Comparison, compare
from eagleray.registry.registry import ModelVersion, Registry
from tests.support.models import LINEAGE
from tests.support.registry import EASY, HARD, evaluated, register


def compared(registry: Registry, versions: list[ModelVersion]) -> Comparison:
    first, second = (ComparedVersion.read(registry, version) for version in versions)
    return compare(first, second)


def test_figures_on_the_same_images_are_compared(registry: Registry, name: str) -> None:
    versions = register(registry, name, 2)
    for version, accuracy in zip(versions, (0.5, 0.75), strict=True):
        evaluated(registry, version, accuracy)
    comparison = compared(registry, versions)
    assert comparison.same_images is True
    assert comparison.measured_on == "parts/test"
    shown = comparison.as_json()
    assert shown["metrics"]["accuracy"] == {"first": 0.5, "second": 0.75, "difference": 0.25}
    assert shown["facts"]["architecture"] == {"first": "lenet5", "second": "lenet5", "same": True}
    assert shown["facts"]["package"]["same"] is False


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
    assert [pair.metric for pair in comparison.metrics] == ["accuracy"]
