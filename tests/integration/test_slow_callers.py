"""Callers that hold connections and send slowly: the others are answered meanwhile."""

from __future__ import annotations

import contextlib
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import psutil
import pytest

from eagleray.serving.callers.applications import Applications
from tests.support.images import encode
from tests.support.models import golden_png
from tests.support.service import RunningService, running_service, until
from tests.support.serving import PREDICT, registry_with

IMAGE = golden_png(1)
STRANGERS = 400  # more than a replica takes on at once
BUFFER = 262_144  # bytes of a request that HAProxy waits for
DECLARED = 64_000_000
PER_ADDRESS = 1000  # connections that the service lets an address have


@dataclass(frozen=True)
class Keyed:
    """A service that asks for keys.

    Attributes:
        running: It.
        port: Of HTTP.
        key: Of an application.
    """

    running: RunningService
    port: int
    key: str

    def client(self, source: str = "127.0.0.1") -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=source)
        headers = {"authorization": f"Bearer {self.key}"}
        url = f"http://127.0.0.1:{self.port}"
        return httpx.Client(transport=transport, base_url=url, headers=headers, timeout=20)

    def connect(self, source: str) -> socket.socket:
        caller = socket.socket()
        caller.settimeout(20)
        caller.bind((source, 0))
        with contextlib.suppress(ConnectionResetError):  # it may be one too many
            caller.connect(("127.0.0.1", self.port))
        return caller


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("slow")
    registry = registry_with(folder, "digits", versions=1)
    key = Applications(registry.history.database, actor="tester").create("shop").key
    words = ["digits", "--engine", "eager", "--host", "0.0.0.0"]
    with running_service(folder / "home", *words) as running:
        yield Keyed(running, int(running.url.rpartition(":")[2]), key)


def may_open(files: int) -> None:
    """Let this process open so many files, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < files + 500:
        pytest.skip(f"this process may open {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files + 500), hard))


@contextlib.contextmanager
def held(callers: Iterator[socket.socket]) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(caller) for caller in callers]


def uploads(service: Keyed, framing: str, *headers: str) -> Iterator[socket.socket]:
    """Begin many uploads, each of which sends as much as HAProxy waits for, and no more."""
    head = "\r\n".join([f"POST {PREDICT} HTTP/1.1", "host: 127.0.0.1", framing, *headers])
    begun = head.encode() + b"\r\n\r\n"
    begun += b"100000\r\n" if "chunked" in framing else b""
    for number in range(STRANGERS):
        caller = service.connect(f"127.0.0.{2 + number % 4}")
        with contextlib.suppress(OSError):  # it may be refused while it sends
            caller.sendall(begun + b"0" * BUFFER)
        yield caller


def assert_answered(service: Keyed) -> None:
    with service.client() as client:
        slowest = 0.0
        for _ in range(20):
            began = time.monotonic()
            response = client.post(PREDICT, content=IMAGE)
            assert response.status_code == 200, response.text
            assert client.get("/ready").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
    assert slowest < 5


@pytest.mark.parametrize("framing", [f"content-length: {DECLARED}", "transfer-encoding: chunked"])
@pytest.mark.parametrize("header", ["accept: */*", "authorization: Bearer wrong"])
def test_slow_uploads_without_a_key_affect_no_other_caller(
    service: Keyed, header: str, framing: str
) -> None:
    may_open(STRANGERS)
    with held(uploads(service, framing, header)) as strangers:
        assert_answered(service)
        for stranger in strangers[:3]:
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1000).startswith(b"HTTP/1.1 401")


def connections_from_gateway(replica: psutil.Process) -> int:
    """Return how many connections of HTTP a replica has."""
    sockets = replica.net_connections("unix")  # an accepted one has the path of its listener
    return sum(str(one.laddr).endswith(".http.sock") for one in sockets) - 1


@pytest.mark.parametrize("key", ["", "wrong"])
def test_large_uploads_of_strangers_hold_nothing_of_a_replica(service: Keyed, key: str) -> None:
    may_open(STRANGERS)
    (replica,) = service.running.replicas()
    assert connections_from_gateway(replica) >= 0
    with held(uploads(service, f"content-length: {DECLARED}", f"x-api-key: {key}")) as strangers:
        for stranger in strangers:  # the replica has seen each of them
            stranger.settimeout(60)
            assert stranger.recv(1000).startswith(b"HTTP/1.1 401")
        # HAProxy itself ends idle uploads after 60 s.
        until(lambda: connections_from_gateway(replica) <= STRANGERS // 10, 20)


def test_a_refused_large_upload_gets_the_reason(service: Keyed) -> None:
    for key, content, status in (
        ("wrong", bytes(DECLARED), 401),
        ("wrong", iter([bytes(1_000_000)] * 64), 401),
        (service.key, bytes(300_000_000), 413),
    ):
        with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=30) as client:
            response = client.post(PREDICT, content=content, headers={"x-api-key": key})
            assert response.status_code == status
            assert response.json()["status"] == status
        words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", "@-"]
        words += ["-H", f"x-api-key: {key}", "-H", "expect:"]
        if shutil.which("curl") and isinstance(content, bytes):
            url = f"http://127.0.0.1:{service.port}{PREDICT}"
            told = subprocess.run([*words, url], input=content, capture_output=True, check=False)
            assert told.stdout == str(status).encode()


def test_a_large_upload_with_a_key_arrives_whole(service: Keyed) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), np.uint8)
    image = encode(pixels, "PNG")
    assert len(image) > 10 * BUFFER
    with service.client() as client:
        for content in (image, iter([image[:1000], image[1000:BUFFER], image[BUFFER:]])):
            response = client.post(PREDICT, content=content)
            assert response.status_code == 200, response.text
            assert response.json()["results"][0]["status"] == "ok"


def test_idle_connections_and_slow_heads_of_an_address_affect_no_other(service: Keyed) -> None:
    may_open(4200)

    def idle() -> Iterator[socket.socket]:
        for number in range(4200):
            caller = service.connect("127.0.0.2")
            if number % 2:
                with contextlib.suppress(OSError):
                    caller.sendall(b"GET / HTTP/1.1\r\nx-a: ")
            yield caller

    with held(idle()):
        for source in ("127.0.0.1", "127.0.0.3"):
            with service.client(source) as client:
                for path in ("/live", "/ready", "/v2/health/live", "/v2/health/ready"):
                    assert client.get(path).status_code == 200
                assert client.post(PREDICT, content=IMAGE).status_code == 200
