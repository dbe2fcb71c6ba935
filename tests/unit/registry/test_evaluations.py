"""Evaluations are kept with the runs of the versions."""

from __future__ import annotations

import pytest

from eagleray.core.errors import InputError
from eagleray.registry.registry import Registry
from tests.support.registry import HARD, evaluated, register


def test_evaluations_are_kept_with_the_version_newest_first(registry: Registry, name: str) -> None:
    first, second = register(registry, name, 2)
    assert registry.evaluations(first) == []
    old = evaluated(registry, first, 0.5)
    new = evaluated(registry, first, 0.6, digest=HARD, created="2026-02-01T00:00:00+00:00")
    assert registry.evaluations(first) == [new, old]
    again = evaluated(registry, first, 0.7)
    assert registry.evaluations(first) == [new, again]
    assert registry.evaluations(second) == []


def test_an_evaluation_of_another_package_is_refused(registry: Registry, name: str) -> None:
    first, second = register(registry, name, 2)
    record = evaluated(registry, first, 0.5)
    with pytest.raises(InputError, match=f"and {name}/2 is {second.digest[:12]}"):
        registry.record_evaluation(second, record)
