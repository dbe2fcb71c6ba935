"""Who used which version: counted in memory, added to the database, kept while it is away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eagleray.cli.main import app
from eagleray.core.settings import Settings
from eagleray.database.store import OpenDatabase, open_database
from eagleray.serving.callers.applications import Applications
from eagleray.serving.callers.usage import UsageStore
from tests.support.serving import IMAGE, PREDICT, RunningApp, registry_with, with_service
from tests.support.usage import NOON, Replica, check_concurrent_additions, check_sums


@pytest.fixture
def database(tmp_path: Path) -> OpenDatabase:
    return open_database(Settings(home=tmp_path / "home"))


def test_replicas_add_to_the_same_rows(database: OpenDatabase) -> None:
    check_sums(database)


def test_additions_at_the_same_time_all_count(database: OpenDatabase) -> None:
    check_concurrent_additions(database)


def test_counts_that_the_database_refuses_are_added_later(
    database: OpenDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    book = UsageStore(database)
    replica = Replica(book)
    replica.away = True
    replica.count("shop", 7, 3)
    assert not replica.counter.flush()
    replica.count("shop", 7, 2)
    assert not replica.counter.flush()
    assert replica.counter.num_kept == 5
    assert [record.message for record in caplog.records] == [
        "the usage is kept until the database accepts it: the database is away"
    ]
    replica.away = False
    assert replica.counter.flush()
    assert replica.counter.num_kept == 0
    assert [item.today for item in book.recent(now=NOON)] == [5]


def test_the_service_counts_each_request_and_shows_callers_their_own_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_with(tmp_path, "digits", versions=2)
    applications = Applications(registry.history.database, actor="tester")
    keys = {name: applications.create(name).key for name in ("shop", "web")}
    applications.pin("web", "digits", "2")

    async def test(running: RunningApp) -> None:
        for name, times in (("shop", 3), ("web", 2)):
            headers = {"authorization": f"Bearer {keys[name]}"}
            for _ in range(times):
                response = await running.client.post(PREDICT, content=IMAGE, headers=headers)
                assert response.status_code == 200
            refused = await running.client.post("/v1/models/no/predict", headers=headers)
            assert refused.status_code == 404
        running.service._usage_counter.flush()
        for name, version, times in (("shop", 1, 3), ("web", 2, 2)):
            headers = {"authorization": f"Bearer {keys[name]}"}
            described = (await running.client.get("/v1/models/digits", headers=headers)).json()
            (usage,) = described["usage"]
            assert (usage["application"], usage["version"]) == (name, version)
            assert (usage["today"], usage["last_7_days"]) == (times, times)
            text = json.dumps(described)
            assert not [other for other in keys if other != name and other in text]
            assert [role["via"] for role in described["roles"]] == (
                ["default", "pinned"] if name == "web" else ["default"]
            )
        await running.client.post(PREDICT, content=IMAGE, headers=headers)  # counted at the end

    with_service(registry, test)
    monkeypatch.setenv("EAGLERAY_HOME", str(registry.settings.home))
    for words, expected in (
        ("digits", [("shop", 1, 3), ("web", 2, 3)]),
        ("digits/2", [("web", 2, 3)]),
    ):
        response = CliRunner().invoke(app, ["models", "traffic", words, "--json"])
        told = json.loads(response.output)
        assert (
            sorted(
                (item["application"], item["version"], item["today"]) for item in told["requests"]
            )
            == expected
        )
    assert [item["by"] for item in told["routes"]] == ["pinned to 2"]
    assert told["changes"] == []
    CliRunner().invoke(app, ["models", "canary", "digits", "2", "--share", "0.1"])
    response = CliRunner().invoke(app, ["models", "traffic", "digits", "--json"])
    (change,) = json.loads(response.output)["changes"]
    assert (change["actor"], change["change"]) == (
        registry.settings.actor,
        "canary 2, canary_share 0.1",
    )
    shown = CliRunner().invoke(app, ["apps", "show", "web", "--json"])
    assert [item["last_7_days"] for item in json.loads(shown.output)["usage"]] == [3]
    for command in (["models", "traffic", "digits"], ["apps", "list"], ["apps", "show", "web"]):
        response = CliRunner().invoke(app, command)
        assert response.exit_code == 0, response.output
        assert "7 days" in response.output
    wrong = CliRunner().invoke(app, ["models", "traffic", "digits/two"])
    assert wrong.exit_code != 0
