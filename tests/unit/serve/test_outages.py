"""Registry and database locked, replaced, emptied, damaged and missing, as callers see it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from eagleray.core.errors import OutageError
from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings
from eagleray.database.store import known_database, open_database
from eagleray.registry.registry import Registry
from eagleray.registry.tracking import connect
from eagleray.serving.callers.applications import Applications
from eagleray.serving.telemetry import text_of
from tests.support.mlflow_database import prepare_home
from tests.support.serving import (
    IMAGE,
    PREDICT,
    RunningApp,
    registry_with,
    run_job,
    with_service,
)

pytestmark = pytest.mark.numerical

STRANGER, NEIGHBOUR = "192.0.2.7", "127.0.0.1"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return registry_with(tmp_path, "digits")


@pytest.fixture
def database(registry: Registry) -> Path:
    return Path(registry.history.database.database.place)


@pytest.fixture
def store(registry: Registry) -> Path:
    return registry.settings.home_folder / "mlflow.db"


def applications_of(registry: Registry) -> Applications:
    """Open the applications as a command does, which makes a database that is missing."""
    return Applications(open_database(registry.settings), actor="tester")


def new_database(folder: Path) -> tuple[Path, str]:
    """Make another database, as a command on an empty home does; return its file and a key.

    It is made elsewhere: a SQLite file that is made under the name of one that is still in use
    shares the other's journal.
    """
    applications = Applications(open_database(Settings(home=folder)), actor="tester")
    return folder / "eagleray.db", applications.create("thief").key


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Keep everybody else from reading and writing a SQLite file."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


def change(file: Path, statement: str, *values: Any) -> None:
    """Run a statement on a SQLite file behind everybody's back."""
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement, values)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def status(running: RunningApp, path: str = "/v1/models", **headers: str) -> int:
    return (await running.client.get(path, headers=headers)).status_code


async def becomes(
    running: RunningApp, wanted: int, path: str = "/v1/models", **headers: str
) -> None:
    """Wait until the response of a path has a status."""
    async with asyncio.timeout(20):
        while await status(running, path, **headers) != wanted:
            await asyncio.sleep(0.02)


async def stays(running: RunningApp, wanted: int) -> None:
    """Check that a request without a key keeps getting a status."""
    for _ in range(5):
        assert await status(running) == wanted
        await asyncio.sleep(0.1)


def shown_by(running: Any) -> bytes:
    """Return the metrics of a service in Prometheus' text format."""
    return text_of([({}, running.service.telemetry.families())])


def metric(text: bytes, name: str) -> float:
    families = text_string_to_metric_families(text.decode())
    return sum(sample.value for one in families for sample in one.samples if sample.name == name)


def hides_locations(response: httpx.Response, registry: Registry) -> None:
    """Check that a response does not reveal locations of the service."""
    for secret in (str(registry.settings.home_folder), ".db", "sqlite", "EAGLERAY_"):
        assert secret not in response.text, response.text


# --- access ------------------------------------------------------------------------------------


def test_a_service_with_keys_stays_closed_when_the_last_application_goes(
    registry: Registry,
) -> None:
    applications = applications_of(registry)
    key = applications.create("shop").key

    async def test(running: RunningApp) -> None:
        assert await status(running, **bearer(key)) == 200
        applications.delete("shop")
        await becomes(running, 401, **bearer(key))
        await stays(running, 401)

    with_service(registry, test, address=NEIGHBOUR)


def test_a_service_without_keys_requires_them_once_there_is_an_application(
    registry: Registry,
) -> None:
    async def test(running: RunningApp) -> None:
        assert await status(running) == 200
        applications = applications_of(registry)
        key = applications.create("shop").key
        await becomes(running, 401)
        assert await status(running, **bearer(key)) == 200
        applications.delete("shop")
        await becomes(running, 401, **bearer(key))
        await stays(running, 401)

    with_service(registry, test, address=NEIGHBOUR)


def test_an_address_in_a_header_is_not_trusted(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        for name in ("x-forwarded-for", "forwarded", "x-real-ip"):
            assert await status(running, **{name: "127.0.0.1"}) == 401

    with_service(registry, test, address=STRANGER)


@pytest.mark.parametrize("how", ["empty", "another"])
def test_a_database_that_was_replaced_opens_nothing_and_is_not_made_again(
    registry: Registry,
    database: Path,
    how: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = applications_of(registry).create("shop").key
    kept = database.with_name("kept.db")
    other, stranger = new_database(tmp_path / "other")

    async def test(running: RunningApp) -> None:
        assert await status(running, **bearer(key)) == 200
        database.rename(kept)
        if how == "empty":
            database.touch()
        else:
            other.replace(database)
            await asyncio.sleep(0.3)
            assert await status(running, **bearer(stranger)) in (401, 503)
        await becomes(running, 503, **bearer(key))
        assert await status(running) == 401
        refused = await running.client.get("/ready", headers=bearer(key))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        hides_locations(refused, registry)
        assert "keys cannot be checked" in running.service.unready_reasons
        assert metric(shown_by(running), "eagleray_keys_unchecked") == 1
        assert str(database) in caplog.text
        kept.replace(database)
        await becomes(running, 200, **bearer(key))
        assert running.service.unready_reasons == []

    with_service(registry, test, address=STRANGER)


def test_a_keyless_service_whose_database_was_replaced_refuses_everyone(
    registry: Registry, database: Path, tmp_path: Path
) -> None:
    other, _ = new_database(tmp_path / "other")

    async def test(running: RunningApp) -> None:
        assert await status(running) == 200
        other.replace(database)
        await becomes(running, 503)

    with_service(registry, test, address=NEIGHBOUR)


def test_a_missing_database_is_not_created_by_the_service(
    registry: Registry, database: Path
) -> None:
    key = applications_of(registry).create("shop").key

    async def test(running: RunningApp) -> None:
        database.unlink()
        await running.until(lambda: "eagleray_watch_faults_total" in shown_by(running).decode())
        await running.client.get("/v1/models/digits", headers=bearer(key))
        answered = await running.client.post(PREDICT, content=IMAGE, headers=bearer(key))
        assert answered.status_code == 200  # by what it last knew
        assert not database.exists()

    with_service(registry, test, address=STRANGER)
    assert not database.exists()


def test_a_database_restored_to_an_earlier_state_revives_no_key(
    registry: Registry, database: Path
) -> None:
    applications = applications_of(registry)
    key = applications.create("shop").key
    applications.rotate("shop")
    earlier = database.read_bytes()
    applications.revoke("shop", key[:11])

    async def test(running: RunningApp) -> None:
        assert await status(running, **bearer(key)) == 401
        database.write_bytes(earlier)
        await becomes(running, 503, **bearer(key))

    with_service(registry, test, address=STRANGER)


# --- watching registry and database ------------------------------------------------------------


def test_a_damaged_row_costs_that_row_alone(
    registry: Registry, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    applications = applications_of(registry)
    good, bad, gone = (applications.create(name).key for name in ("good", "bad", "gone"))

    async def test(running: RunningApp) -> None:
        for key in (good, bad, gone):
            assert await status(running, **bearer(key)) == 200
        change(database, "UPDATE api_keys SET expires = 'soon' WHERE application = 'bad'")
        change(database, "UPDATE applications SET created = '?' WHERE name = 'bad'")
        change(database, "INSERT INTO pins VALUES ('nobody', 'digits', '1')")
        applications.revoke("gone", gone[:11])
        await becomes(running, 401, **bearer(gone))
        await becomes(running, 401, **bearer(bad))
        assert await status(running, **bearer(good)) == 200
        assert "of table api_keys is skipped" in caplog.text
        assert running.service.unready_reasons == []

    with_service(registry, test, address=STRANGER)


def test_an_outage_of_the_registry_keeps_no_revoked_key_valid(
    registry: Registry, store: Path
) -> None:
    applications = applications_of(registry)
    key, other = applications.create("shop").key, applications.create("other").key

    async def test(running: RunningApp) -> None:
        with locked(store):
            applications.revoke("shop", key[:11])
            await becomes(running, 401, **bearer(key))
            answered = await running.client.post(PREDICT, content=IMAGE, headers=bearer(other))
            assert answered.status_code == 200

    with_service(registry, test, address=STRANGER)


def test_no_error_ends_the_watching(
    registry: Registry, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    statement = "UPDATE registered_model_aliases SET version = ?"

    async def test(running: RunningApp) -> None:
        change(store, statement, "soon")  # no number, so nothing that we expect
        await running.until(lambda: "ValueError" in caplog.text)
        await asyncio.sleep(0.5)
        assert caplog.text.count("the registry cannot be read") == 1
        assert metric(shown_by(running), "eagleray_watch_faults_total") > 1
        assert (await running.client.post(PREDICT, content=IMAGE)).status_code == 200
        change(store, statement, "1")
        await running.until(lambda: "responds again" in caplog.text)
        registry.set_alias("digits", "candidate", 1)
        await running.until(lambda: "candidate" in running.service.snapshot.aliases["digits"])

    with_service(registry, test, address=NEIGHBOUR)


def test_a_registry_that_was_replaced_is_read_anew(registry: Registry, store: Path) -> None:
    async def test(running: RunningApp) -> None:
        copy = store.with_name("copy.db")
        copy.write_bytes(store.read_bytes())
        change(copy, "UPDATE registered_model_aliases SET alias = 'candidate'")
        copy.replace(store)
        await running.until(lambda: "candidate" in running.service.snapshot.aliases["digits"])

    with_service(registry, test, address=NEIGHBOUR)


def test_an_empty_registry_in_the_place_of_another_takes_no_model_away(
    registry: Registry, store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = prepare_home(tmp_path / "other") / "mlflow.db"

    async def test(running: RunningApp) -> None:
        kept = store.rename(store.with_name("kept.db"))
        await running.until(lambda: "no longer exists" in caplog.text)
        assert not store.exists()  # reading makes none
        empty.rename(store)
        await running.until(lambda: "replaced by an empty one" in caplog.text)
        assert (await running.client.post(PREDICT, content=IMAGE)).status_code == 200
        kept.replace(store)
        await running.until(lambda: "responds again" in caplog.text)

    with_service(registry, test, address=NEIGHBOUR)


def test_keys_are_not_accepted_after_too_long_without_the_database(
    registry: Registry, database: Path
) -> None:
    key = applications_of(registry).create("shop").key

    async def test(running: RunningApp) -> None:
        with locked(database):
            await becomes(running, 503, **bearer(key))
            refused = await running.client.post(PREDICT, content=IMAGE, headers=bearer(key))
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/outage")
            assert refused.json()["detail"] == "Keys cannot be checked now; try again later."
            assert await status(running) == 401
            assert await status(running, "/live") == 200
            assert running.service.unready_reasons == ["keys cannot be checked"]
            assert metric(shown_by(running), "eagleray_keys_age_seconds") > 1
        await becomes(running, 200, **bearer(key))

    with_service(registry, test, address=STRANGER, max_snapshot_age_s=1.0)


# --- bounded waits ------------------------------------------------------------------------------


def test_a_locked_database_holds_up_only_requests_that_need_it(
    registry: Registry, database: Path
) -> None:
    async def test(running: RunningApp) -> None:
        with locked(database):
            began = time.monotonic()
            described = [
                asyncio.create_task(running.client.get("/v1/models/digits")) for _ in range(60)
            ]
            await asyncio.sleep(0.3)
            others = asyncio.get_running_loop().run_in_executor(None, time.monotonic)
            assert await asyncio.wait_for(others, 1) - began < 1  # the common threads are free
            asked_at = time.monotonic()
            assert (await running.client.post(PREDICT, content=IMAGE)).status_code == 200
            assert (await running.client.get("/metrics")).status_code == 200
            assert time.monotonic() - asked_at < 2
            for response in await asyncio.gather(*described):
                assert response.json()["usage"] is None
            assert time.monotonic() - began < 8

    with_service(registry, test, address=NEIGHBOUR)


def test_a_locked_registry_is_503_in_time_and_immediately_under_load(
    registry: Registry, store: Path
) -> None:
    async def test(running: RunningApp) -> None:
        with locked(store):
            began = time.monotonic()
            waiting = [
                asyncio.create_task(running.client.get("/v1/models/digits/versions"))
                for _ in range(60)
            ]
            first, _ = await asyncio.wait(waiting, timeout=1)
            assert len(first) == 40  # 4 work, 16 wait
            responses = await asyncio.gather(*waiting)
            assert time.monotonic() - began < 8
            for response in responses:
                assert (response.status_code, response.json()["type"]) == (503, "/problems/outage")
                assert int(response.headers["retry-after"]) >= 1
                hides_locations(response, registry)
            assert (await running.client.post(PREDICT, content=IMAGE)).status_code == 200
        await becomes(running, 200, "/v1/models/digits/versions")

    with_service(registry, test, address=NEIGHBOUR)


# --- what callers see --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models/digits/versions", "/v2/models/digits"])
def test_a_missing_registry_is_503_without_its_location(
    registry: Registry, store: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(running: RunningApp) -> None:
        store.unlink()
        refused = await running.client.get(path)
        assert refused.status_code == 503
        hides_locations(refused, registry)
        assert str(store) in caplog.text
        assert not store.exists()

    with_service(registry, test, address=NEIGHBOUR)


@pytest.mark.parametrize("how", ["altered", "gone"])
def test_a_damaged_package_is_reported_without_its_location(
    registry: Registry, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(registry.get("digits", version=1).source)
    for file in (folder / "model.json", folder / "model.safetensors"):
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(b"{}")

    async def test(running: RunningApp) -> None:
        asked_for = [running.client.post(PREDICT, content=IMAGE), running.client.get("/ready")]
        for refused in await asyncio.gather(*asked_for):
            assert refused.status_code == 503
            hides_locations(refused, registry)
        described = await running.client.get("/v1/models/digits")
        hides_locations(described, registry)
        assert described.json()["roles"][0]["fault"].endswith("the service's log says why.")
        assert str(folder) in caplog.text

    with_service(registry, test, address=NEIGHBOUR)


def test_a_command_makes_the_database_that_reading_alone_does_not(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with pytest.raises(OutageError, match="no longer exists"):
        known_database(settings, "of another").read_identity()
    assert not (tmp_path / "home").exists()
    made = open_database(settings)
    known = known_database(settings, made.read_identity())
    assert known.read_identity() == made.read_identity()


def test_a_failed_batch_names_only_the_locations_of_its_caller(
    registry: Registry, tmp_path: Path
) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out" / "x"
    photos.mkdir()
    words = f"No image in {photos}/a; sqlite:////srv/hidden/mlflow.db and /srv/hidden/b are away."

    async def test(running: RunningApp) -> None:
        body = {"inputs": str(photos), "output": str(output), "model": "digits"}
        started = (await running.client.post("/v1/batches", json=body)).json()
        run_job(registry, started["id"], JobState.FAILED, message=words)
        found = (await running.client.get(f"/v1/batches/{started['id']}")).json()
        assert found["state"] == "failed"
        assert found["message"] == f"No image in {photos}/a; … and … are away."

    places: dict[str, Any] = {
        "batch_inputs": (str(photos),),
        "batch_outputs": (str(tmp_path / "out"),),
    }
    with_service(registry, test, **places)


@pytest.mark.parametrize("listens", [True, False])
def test_a_postgresql_that_does_not_respond_is_reported_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:  # and says nothing
            silent.listen()
        uri = f"postgresql://eagle@127.0.0.1:{silent.getsockname()[1]}/mlflow"
        began = time.monotonic()
        with pytest.raises(OutageError, match="does not answer as it should"):
            connect(Settings(home=tmp_path, tracking_uri=uri))
        assert time.monotonic() - began < 15
