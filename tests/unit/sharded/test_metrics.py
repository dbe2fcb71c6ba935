"""What a run of shards publishes for Prometheus, and when."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eagleray.batch.shard_summary import ShardSummary
from eagleray.core import job_metrics
from eagleray.sharded.metrics import ShardMetrics
from tests.support.batch import output


class Gauges:
    """Stands for Ray's gauges, and keeps the last value of each series."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}

    def named(self, name: str) -> Any:
        def keep(value: float, labels: dict[str, str]) -> None:
            assert set(labels) == {"command", "job_id", *job_metrics.METRICS[name][1]}
            self.values[name, labels.get("reason", "")] = value

        return SimpleNamespace(set=keep)


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> Gauges:
    made = Gauges()
    monkeypatch.setattr(job_metrics, "_gauge", made.named)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    return made


def test_failures_add_up_by_reason_and_repeats_are_counted(gauges: Gauges, tmp_path: Path) -> None:
    metrics = ShardMetrics(output(tmp_path, rows=40).plan)
    metrics.start(8)
    assert gauges.values == {("images", ""): 40, ("images_done", ""): 8}
    first = ShardSummary(0, 13, 3, 0.0, 1.0, failures='{"timeout": 1, "truncated": 2}')
    metrics.add(first, 24)
    again = ShardSummary(1, 15, 1, 0.0, 1.0, failures='{"timeout": 1}', repeated=True)
    metrics.add(again, 40)
    assert gauges.values == {
        ("images", ""): 40,
        ("images_done", ""): 40,
        ("images_failed", "timeout"): 2,
        ("images_failed", "truncated"): 2,
        ("shards_repeated", ""): 1,
    }


def test_without_ray_nothing_is_published(
    gauges: Gauges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    ShardMetrics(output(tmp_path, rows=40).plan).start(0)
    assert gauges.values == {}
