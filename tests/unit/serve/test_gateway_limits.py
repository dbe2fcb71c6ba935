"""What one caller may take of the gateway, and what HAProxy says by itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import httpx
import pytest

from tests.support.gateway import LIMITS, PREDICT, Replica, Running, run, until
from tests.support.http2 import Http2Caller

SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
BUFFER = 262_144  # bytes of a request that HAProxy waits for


def assert_is_problem(response: httpx.Response, status: int) -> None:
    """HAProxy's own response is what a replica's refusal is, and no page a browser would run."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers.items() >= SAFE.items()
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    document = response.json()
    assert document["status"] == status
    assert document["request_id"] == response.headers["x-request-id"]
    assert document.keys() == {"type", "title", "status", "detail", "request_id"}


async def received(caller: socket.socket) -> bytes:
    response = b""
    with contextlib.suppress(ConnectionResetError):
        while more := await asyncio.to_thread(caller.recv, 100_000):
            response += more
    return response


def test_refusals_of_haproxy_are_problems_with_safe_headers(tmp_path: Path) -> None:
    async def test(running: Running, replica: Replica) -> None:
        replica.may_answer.set()
        assert (await running.predict()).status_code == 200
        replica.may_answer.clear()
        replica.requested.clear()
        held = asyncio.create_task(running.predict())
        await replica.requested.wait()
        assert_is_problem(await running.predict(x_request_id="mine"), 429)
        replica.may_answer.set()
        await held
        large = {"x-large": "0" * 70_000}
        assert_is_problem(await running.client.get("/x", headers=large), 431)
        with running.connect() as caller:
            caller.sendall(b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await asyncio.to_thread(caller.recv, 100)).startswith(b"HTTP/1.1 431 ")

    run(tmp_path, test, "one")


def test_haproxys_own_responses_are_problems_with_security_headers(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        assert_is_problem(await running.predict(x_request_id="mine"), 503)
        assert_is_problem(await running.client.get("/", headers={"accept": "text/html"}), 503)

    run(tmp_path, test)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00 <script>alert(1)</script>\r\n\r\n",
        b"GET /<script>alert(1)</script> HTTP/9\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n<script>alert(1)</script>\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: <script>\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: <script>",  # and no more
    ],
)
def test_responses_of_haproxys_parser_repeat_nothing_of_the_request(
    tmp_path: Path, sent: bytes
) -> None:
    async def test(running: Running) -> None:
        with running.connect() as caller:
            caller.sendall(sent)
            response = await received(caller)
        assert response.startswith((b"HTTP/1.1 400", b"HTTP/1.1 408"))
        assert b"script" not in response.lower()
        assert b"haproxy" not in response.lower()
        assert b"connection: close" in response.lower()

    run(tmp_path, test)


@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
@pytest.mark.parametrize("sends", [1, BUFFER])
def test_bodies_that_are_still_arriving_take_no_capacity(
    tmp_path: Path, method: str, sends: int
) -> None:
    """The replica takes one prediction at once; each of these would be another."""

    async def test(running: Running, replica: Replica) -> None:
        replica.may_answer.set()
        assert (await running.predict()).status_code == 200  # now the room is known
        head = f"{method} {PREDICT} HTTP/1.1\r\nhost: a\r\n"
        framings = (
            "content-length: 64000000\r\n\r\n",
            "transfer-encoding: chunked\r\n\r\n80000\r\n",
        )
        with contextlib.ExitStack() as stack:
            for number in range(30):
                caller = stack.enter_context(running.connect("127.0.0.2"))
                begun = (head + framings[number % 2]).encode() + b"0" * sends
                await asyncio.to_thread(caller.sendall, begun)
            if sends == BUFFER:  # as much is passed on
                await until(lambda: len(replica.writers) > 30)
            for _ in range(5):
                assert (await running.predict()).status_code == 200

    run(tmp_path, test, "one")


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_requests_in_one_connection_of_http2_count_as_connections_do(
    tmp_path: Path, door: str
) -> None:
    async def test(running: Running, replica: Replica) -> None:
        replica.may_answer.set()
        port = running.place.port if door == "http" else running.place.grpc_port
        with Http2Caller(port, source="127.0.0.2") as caller:
            for _ in range(LIMITS.max_connections_per_address + 30):
                caller.begin("POST", PREDICT)  # and no body
            refused = await asyncio.to_thread(caller.answers, 30)
            if door == "http":
                assert {response[":status"] for response in refused} == {"429"}
            else:
                assert {response["grpc-status"] for response in refused} == {"8"}
            assert (await running.predict()).status_code == 200

    run(tmp_path, test, "one")
