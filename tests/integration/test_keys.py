"""Who a running service lets in: it is settled when the service starts, and only ever tightened."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from eagleray import Client, RequestRefusedError
from eagleray.core.settings import Settings
from eagleray.database.store import open_database
from eagleray.serving.callers.applications import Applications
from tests.support.models import golden_png
from tests.support.service import RunningService, running_service, until
from tests.support.serving import registry_with

IMAGE = golden_png(0)
LIVENESS = ["/live", "/v2/health/live"]
OTHER_PATHS = ["/", "/docs", "/openapi.json", "/metrics", "/-/healthz", "/-/routes", "/x"]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
RAYS_PATHS = ["/api/jobs/", "/api/cluster_status", "/nodes?view=summary", "/api/v0/logs", "/logs"]


@dataclass(frozen=True)
class Keyed(RunningService):
    """A service that started without an application, and has had one since."""

    home: Path
    applications: Applications


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("keys")
    registry_with(folder, "digits")
    settings = Settings(home=folder / "home")
    words = ["digits", "--engine", "eager", "--poll-interval-s", "0.2"]
    with running_service(folder / "home", *words) as running:
        assert httpx.get(running.url + "/v1/models").status_code == 200
        applications = Applications(open_database(settings), actor=settings.actor)
        applications.create("first")
        until(lambda: httpx.get(running.url + "/v1/models").status_code == 401)
        applications.delete("first")
        yield Keyed(**vars(running), home=settings.home, applications=applications)


@pytest.fixture
def key(service: Keyed) -> Iterator[str]:
    """The key of an application that is there for one test."""
    made = service.applications.create("shop").key
    until(lambda: ask(service, made) == 200)
    yield made
    service.applications.delete("shop")


def ask(service: Keyed, key: str | None, path: str = "/v1/models") -> int:
    """Return the status of a request with a key, or without one."""
    return httpx.get(service.url + path, headers={"x-api-key": key} if key else {}).status_code


def test_keys_come_into_force_while_the_service_runs(service: Keyed, key: str) -> None:
    assert httpx.get(service.url + "/live").status_code == 200
    with Client(service.url) as client, pytest.raises(RequestRefusedError) as refused:
        client.predict("digits", IMAGE)
    assert refused.value.status == 401
    with Client(service.url, key=key) as client:
        assert client.predict("digits", IMAGE).status == "ok"
    with tritonclient.grpc.InferenceServerClient(service.grpc) as client:
        assert client.is_server_live()
        with pytest.raises(InferenceServerException, match="Bearer"):
            client.is_model_ready("digits")
        headers = {"authorization": f"Bearer {key}"}
        assert client.is_model_ready("digits", headers=headers)


def test_without_a_key_every_port_reveals_only_liveness(service: Keyed, key: str) -> None:
    document = httpx.get(service.url + "/openapi.json", headers={"x-api-key": key}).json()
    paths = [*document["paths"], *OTHER_PATHS, *LIVENESS]
    http_ports: dict[int, str] = {}

    def found_own() -> bool:
        """Look at the ports; HAProxy may be handing its own to its successor."""
        http_ports.clear()
        http_ports.update((port, name) for port, name in owners(service).items() if answers(port))
        return int(service.url.rpartition(":")[2]) in http_ports

    until(found_own)
    for port, owner in http_ports.items():
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            rays = "site-packages/ray/" in owner
            for method, path in itertools.product(METHODS, RAYS_PATHS if rays else paths):
                response = client.request(
                    method, path.format(name="digits", version="1", batch="1", job="1")
                )
                assert "digits" not in response.text, (owner, method, path)
                # Ray's processes count what they use; on loopback, as another test shows.
                counts = rays and "# HELP" in response.text
                silent = not response.text or response.status_code in (401, 403, 404, 405)
                assert silent or path in LIVENESS or counts, (owner, port, method, path)


def test_a_service_without_its_last_application_admits_no_caller(service: Keyed) -> None:
    key = service.applications.create("bakery").key
    until(lambda: ask(service, key) == 200)
    service.applications.delete("bakery")
    until(lambda: ask(service, key) == 401)
    assert ask(service, None) == 401
    with tritonclient.grpc.InferenceServerClient(service.grpc) as client:
        for headers in ({}, {"authorization": f"Bearer {key}"}):
            with pytest.raises(InferenceServerException) as refused:
                client.is_model_ready("digits", headers=headers)
            assert refused.value.status() == "StatusCode.UNAUTHENTICATED"


def test_a_replaced_database_admits_no_caller(service: Keyed, key: str, tmp_path: Path) -> None:
    database = service.home / "eagleray.db"
    open_database(Settings(home=tmp_path))  # as a command on an empty home makes it
    aside = database.rename(database.with_suffix(".aside"))
    try:
        (tmp_path / "eagleray.db").replace(database)
        until(lambda: ask(service, key) == 503)
        assert (ask(service, None), ask(service, key, "/ready")) == (401, 503)
        assert ask(service, None, "/live") == 200
    finally:
        aside.replace(database)
    until(lambda: ask(service, key, "/ready") == 200)


def owners(service: Keyed) -> dict[int, str]:
    """Return every port that a process of the service listens on, and the process's name."""
    import psutil

    ours = {process.pid for process in psutil.Process(service.process.pid).children(True)}
    return {
        connection.laddr.port: " ".join(psutil.Process(connection.pid).cmdline())
        for connection in psutil.net_connections("tcp")
        if connection.status == "LISTEN" and connection.pid in ours
    }


def answers(port: int) -> bool:
    """Return whether a port speaks HTTP."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/live", timeout=10).status_code > 0
    except httpx.HTTPError:
        return False
