"""The metrics of all replicas, whichever of them is scraped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from eagleray.core.settings import Settings
from eagleray.database.store import OpenDatabase, open_database
from eagleray.registry.registry import Registry
from eagleray.serving.replica_metrics import ReplicaMetrics
from eagleray.serving.telemetry import Telemetry, by_replica, text_of
from tests.support.serving import RunningApp, registry_with, with_service

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> OpenDatabase:
    return open_database(Settings(home=tmp_path))


def refused(times: int) -> Telemetry:
    telemetry = Telemetry()
    telemetry.rejections.labels("full").inc(times)
    telemetry.batches.observe(4)
    return telemetry


def values(text: bytes, name: str) -> dict[str, float]:
    """Return the values of a sample by replica."""
    families = text_string_to_metric_families(text.decode())
    return {
        sample.labels["replica"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_families_of_several_replicas_are_one_text() -> None:
    text = text_of(by_replica({"a": refused(3).families(), "b": refused(4).families()}))
    assert values(text, "eagleray_rejections_total") == {"a": 3.0, "b": 4.0}
    assert values(text, "eagleray_batch_images_sum") == {"a": 4.0, "b": 4.0}
    assert text.count(b"# TYPE eagleray_rejections_total counter") == 1


def test_replicas_see_the_metrics_of_others_until_they_end(database: OpenDatabase) -> None:
    a, b = ReplicaMetrics(database, "a"), ReplicaMetrics(database, "b")
    for times in (3, 5):
        a.publish(refused(times).families(), now=NOW)
    assert a.others(now=NOW) == {}
    text = text_of(by_replica(b.others(now=NOW + timedelta(seconds=29))))
    assert values(text, "eagleray_rejections_total") == {"a": 5.0}
    assert b.others(now=NOW + timedelta(seconds=31)) == {}  # it was killed, or cannot write
    a.remove()
    assert b.others(now=NOW) == {}


def test_any_replica_returns_the_metrics_of_all(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, "digits")

    async def test(running: RunningApp) -> None:
        registry: Registry = running.service.registry
        ReplicaMetrics(registry.history.database, "other").publish(refused(7).families())
        await running.client.get("/metrics", headers={"x-eagleray-refused": "2"})
        text = (await running.client.get("/metrics")).content
        assert values(text, "eagleray_rejections_total") == {"": 2.0, "other": 7.0}
        assert set(values(text, "eagleray_queued_images")) == {""}

    with_service(registry, test, replicas=2)
