"""Bodies that arrive slowly, or only declare a size, affect only the caller that sends them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from eagleray.serving.callers.admission import ByteLimiter
from eagleray.serving.callers.applications import Applications
from eagleray.serving.problems import FullError, TooLargeError
from tests.support.http_service import Served, http_service
from tests.support.models import registry_in
from tests.support.serving import IMAGE, PREDICT, registry_with

SECONDS = 30  # far less than any of the uploads here would take, on any machine


class Upload:
    """A request whose body is on its way."""

    def __init__(self, port: int, key: str, declared: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        head = (
            f"POST {PREDICT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/png\r\n"
            f"authorization: Bearer {key}\r\ncontent-length: {declared}\r\n\r\n"
        )
        self.send(head.encode())

    def send(self, content: bytes) -> None:
        with contextlib.suppress(OSError):  # it was refused
            self._socket.sendall(content)

    def status(self) -> int | None:
        """Return how it was answered; None while it is not."""
        self._socket.setblocking(False)
        try:
            start = self._socket.recv(64, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return 0
        finally:
            self._socket.settimeout(SECONDS)
        return int(start.split(b" ")[1])

    def close(self) -> None:
        self._socket.close()


class Dripping:
    """Uploads that each send a little, ten times a second, until the block ends."""

    def __init__(self, uploads: list[Upload], a_second: int) -> None:
        self._uploads, self._part = uploads, b"x" * (a_second // 10)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._drip)

    def _drip(self) -> None:
        while not self._ending.wait(0.1):
            for upload in self._uploads:
                upload.send(self._part)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    registry = registry_with(tmp_path, "digits")
    applications = Applications(registry.history.database, actor="tester")
    return {name: applications.create(name).key for name in ("slow", "shop")}


@contextlib.contextmanager
def serving(tmp_path: Path, **fields: Any) -> Iterator[Served]:
    with http_service(registry_in(tmp_path), **fields) as served:
        yield served


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def require_service(served: Served, key: str) -> None:
    """Expect health and predictions of an application while uploads are in progress."""
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=served.url, timeout=SECONDS, headers=headers) as client:
        for method, path in (("GET", "/live"), ("GET", "/ready"), ("POST", PREDICT)):
            for _ in range(3):
                response = client.request(method, path, content=IMAGE if method == "POST" else None)
                assert response.status_code == 200, response.text


@pytest.mark.parametrize("count", [8, 80])
def test_bodies_that_arrive_slowly_affect_no_other_caller(
    tmp_path: Path, keys: dict[str, str], count: int
) -> None:
    """At the slowest legal pace, 64 MB take eleven minutes."""
    with serving(tmp_path) as served:
        uploads = [Upload(served.port, keys["slow"], 64_000_000) for _ in range(count)]
        with Dripping(uploads, a_second=100_000):
            for _ in range(5):
                require_service(served, keys["shop"])
                time.sleep(0.2)
            require_service(served, keys["slow"])
        assert [upload.status() for upload in uploads] == [None] * count
        assert 0 < served.service.byte_limiter.in_flight < 100_000_000
        for upload in uploads:
            upload.close()


def test_the_bytes_of_one_application_leave_room_for_others(
    tmp_path: Path, keys: dict[str, str]
) -> None:
    with serving(tmp_path, max_in_flight_mb=8, max_body_mb=1, timeout_s=60) as served:
        limiter, accepted = served.service.byte_limiter, 0
        uploads = [Upload(served.port, keys["slow"], 1_000_000) for _ in range(16)]
        for upload in uploads:  # all but the last byte of each
            upload.send(b"x" * 999_999)
            arrived = (accepted + 1) * 999_999
            until(lambda u=upload, n=arrived: u.status() is not None or limiter.in_flight == n)  # type: ignore[misc]
            accepted += upload.status() is None
        require_service(served, keys["shop"])
        assert limiter.in_flight <= 4_000_000
        refused = [upload.status() for upload in uploads].count(429)
        assert 11 <= refused <= 12
        for upload in uploads:
            upload.close()
        until(lambda: not limiter.in_flight)
        require_service(served, keys["slow"])


def test_a_declared_size_above_the_limit_is_refused_at_once(
    tmp_path: Path, keys: dict[str, str]
) -> None:
    with serving(tmp_path, max_body_mb=1) as served:
        head = (
            f"POST {PREDICT} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {keys['shop']}\r\n"
            "content-length: 1000001\r\n\r\n"
        )
        assert served.say(head.encode()).startswith(b"HTTP/1.1 413")
        assert served.service.byte_limiter.in_flight == 0


@pytest.mark.parametrize(
    ("framing", "closes"),
    [("content-length: 150000", False), ("content-length: 150001", True), ("chunked", True)],
)
def test_a_refusal_closes_the_connection_of_a_body_that_is_still_arriving(
    tmp_path: Path, keys: dict[str, str], framing: str, closes: bool
) -> None:
    """HAProxy would hold the connection until the sender ends the body."""
    framing = framing if framing != "chunked" else "transfer-encoding: chunked"
    head = f"POST {PREDICT} HTTP/1.1\r\nhost: a\r\nx-api-key: wrong\r\n{framing}\r\n\r\n"
    with serving(tmp_path) as served:
        response = served.say(head.encode())
    assert response.startswith(b"HTTP/1.1 401")
    assert (b"\r\nconnection: close\r\n" in response) == closes


def test_a_request_that_has_arrived_keeps_its_connection(
    tmp_path: Path, keys: dict[str, str]
) -> None:
    large = IMAGE + bytes(200_000)  # what follows an image is ignored
    with (
        serving(tmp_path) as served,
        httpx.Client(base_url=served.url, headers={"x-api-key": keys["shop"]}) as client,
    ):
        response = client.post(PREDICT, content=large)
    assert response.json()["results"][0]["status"] == "ok"
    assert "connection" not in response.headers


# --- the limiter alone ---------------------------------------------------------------------------


def test_an_application_alone_has_half_and_two_have_a_third_each() -> None:
    limiter = ByteLimiter(120, 100)
    with contextlib.ExitStack() as stack:
        held = dict.fromkeys(("a", "b"), 0)
        for name, share in (("a", 60), ("b", 30)):  # what is left for others after the first
            with contextlib.suppress(FullError):
                while True:
                    stack.enter_context(limiter.hold(name))(5)
                    held[name] += 5
            assert held[name] == share
        with pytest.raises(FullError, match="as are left for others"):
            stack.enter_context(limiter.hold("a"))(1)
        stack.enter_context(limiter.hold("c"))(30)
        with pytest.raises(FullError, match="Too many bytes"):
            stack.enter_context(limiter.hold("d"))(1)
    assert limiter.in_flight == 0


def test_a_single_request_may_take_all_that_is_left() -> None:
    limiter = ByteLimiter(100, 100)
    with limiter.hold("a") as grow:
        grow(70)
        grow(70)
        grow(100)
        assert limiter.in_flight == 100
        with pytest.raises(TooLargeError):
            grow(101)
        with limiter.hold("b") as other:
            other(0)
            with pytest.raises(FullError):
                other(1)
    assert limiter.in_flight == 0


def test_a_refused_request_releases_what_it_held() -> None:
    limiter = ByteLimiter(100, 100)
    with limiter.hold("a") as first:
        first(30)
        with limiter.hold("a") as second:
            second(20)
            with pytest.raises(FullError):
                second(60)
            assert limiter.in_flight == 50
        assert limiter.in_flight == 30
    assert limiter.in_flight == 0
