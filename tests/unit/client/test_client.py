"""The client against servers that drip, lie and break: it ends in time, with one clear error."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import multiprocessing
import pickle
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from eagleray import AsyncClient, BadImageError, Client, RequestRefusedError
from eagleray.core.environment import is_loopback
from tests.support.http_service import http_service
from tests.support.models import golden_png
from tests.support.raw_server import RawServer, raw_server, response
from tests.support.serving import registry_with

KEY = "er_secret0123456789"
IMAGE = golden_png(1)
RESULT = {"status": "ok", "label": "7", "score": 0.9}
TIMES = {"queue_ms": 1, "decode_ms": 1, "forward_ms": 1, "total_ms": 3, "batch_images": 1}
ANSWER: dict[str, Any] = {
    "model": "digits",
    "version": 1,
    "via": "default",
    "contract_digest": "c",
    "package_digest": "p",
    "engine": "eager float32",
    "request_id": "r",
    "results": [RESULT],
    "timings": TIMES,
}
BATCH: dict[str, Any] = {
    "id": "b1",
    "state": "running",
    "created": "2026-01-01T00:00:00Z",
    "model": "digits/1",
    "output": "/out",
    "request": {},
    "total": None,
    "done": 0,
    "failed": 0,
    "images_per_second": None,
    "seconds_left": None,
    "message": "",
}
GOOD = response(json.dumps(ANSWER))
BUSY = "503 Service Unavailable"
PROBLEM = "application/problem+json"


def ask(server: RawServer, **options: Any) -> Any:
    """Predict an image within two seconds, unless a test says otherwise."""
    with Client(server.url, key=KEY, **{"timeout": 2.0, **options}) as client:
        return client.predict("digits", IMAGE)


def refused(server: RawServer, **options: Any) -> RequestRefusedError:
    with pytest.raises(RequestRefusedError) as caught:
        ask(server, **options)
    assert KEY not in str(caught.value) + repr(caught.value)
    return caught.value


# --- time -------------------------------------------------------------------------------------


def never(server: RawServer, _: socket.socket) -> None:
    server.ended.wait(30)


def drip_the_body(server: RawServer, connection: socket.socket) -> None:
    connection.sendall(GOOD[:-50])
    server.drip(connection, b" " * 50)


SLOW: dict[str, Callable[[RawServer, socket.socket], None]] = {
    "no answer": never,
    "head": lambda server, connection: server.drip(connection, GOOD),
    "body": drip_the_body,
    "endless informational": lambda server, connection: server.drip(
        connection, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 500, every=0.01
    ),
}


@pytest.mark.parametrize("kind", SLOW)
@pytest.mark.parametrize("attempts", [1, 5])
def test_a_call_ends_within_its_time_out(kind: str, attempts: int) -> None:
    with raw_server(SLOW[kind]) as server:
        began = time.monotonic()
        error = refused(server, timeout=0.8, attempts=attempts)
        assert 0.7 < time.monotonic() - began < 1.6
        assert error.status == 0
        assert "within 0.8 s" in str(error)


def test_an_asynchronous_call_ends_within_its_time_out() -> None:
    async def test(server: RawServer) -> None:
        async with AsyncClient(server.url, timeout=0.8) as client:
            with pytest.raises(RequestRefusedError, match=r"within 0\.8 s"):
                await client.batches.list()
            assert not await client.ready()

    with raw_server(SLOW["head"]) as server:
        began = time.monotonic()
        asyncio.run(test(server))
        assert time.monotonic() - began < 2.6


def test_repetitions_share_the_time_out() -> None:
    def break_late(server: RawServer, _: socket.socket) -> None:
        server.ended.wait(0.4)  # and the connection is closed

    with raw_server(break_late) as server:
        began = time.monotonic()
        refused(server, timeout=1.0, attempts=20)
        assert time.monotonic() - began < 1.8
        assert 2 <= len(server.requests) <= 3


def test_it_waits_for_the_given_time() -> None:
    busy = response("{}", "retry-after: 1", status=BUSY, kind=PROBLEM)
    with raw_server(busy, GOOD) as server:
        began = time.monotonic()
        assert ask(server, timeout=10.0).label == "7"
        assert 1.0 <= time.monotonic() - began < 2.5


@pytest.mark.parametrize("when", ["60", "9" * 400, "date"])
def test_it_does_not_wait_where_the_time_out_is_sooner(when: str) -> None:
    if when == "date":
        when = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    busy = response('{"detail": "It is full."}', f"retry-after: {when}", status=BUSY, kind=PROBLEM)
    with raw_server(busy) as server:
        began = time.monotonic()
        error = refused(server)
        assert time.monotonic() - began < 1.0
        assert len(server.requests) == 1
        assert str(error) == "It is full."
        assert error.retry_after is not None
        assert error.retry_after > 50


@pytest.mark.parametrize(
    "when", ["soon", "-1", "\N{ARABIC-INDIC DIGIT ONE}", "Thu, 99 Jan 2026 00:00:00 GMT"]
)
def test_an_invalid_retry_after_is_ignored(when: str) -> None:
    busy = response("{}", f"retry-after: {when}".encode().decode("latin-1"), status=BUSY)
    with raw_server(busy, GOOD) as server:
        assert ask(server).label == "7"


@pytest.mark.parametrize(
    ("status", "count"), [(429, 3), (502, 3), (503, 3), (400, 1), (401, 1), (408, 1), (500, 1)]
)
def test_which_statuses_are_retried(status: int, count: int) -> None:
    with raw_server(response("{}", status=f"{status} Some", kind=PROBLEM)) as server:
        assert refused(server, attempts=3).status == status
        assert len(server.requests) == count


# --- answers that are not ours ----------------------------------------------------------------

STRANGE: dict[str, tuple[bytes, str]] = {
    "a login page": (response("<html>Log in</html>", kind="text/html"), "'text/html'"),
    "no content type": (response(json.dumps(ANSWER), kind=None), "'none'"),
    "cut JSON": (response(json.dumps(ANSWER)[:-9]), "not JSON"),
    "no JSON": (response("hello"), "not JSON"),
    "nothing": (response(""), "not JSON"),
    "no UTF-8": (response(b'{"model": "\xff\xfe\x00"}'), "not JSON"),
    "too deep": (response("[" * 50_000), "not JSON"),
    "a number without end": (response("1" * 10_000), "not JSON"),
    "a list": (response("[]"), "cannot be read"),
    "null": (response("null"), "cannot be read"),
    "lacks members": (response('{"model": "digits"}'), "version is required"),
    "wrong kinds": (
        response(json.dumps({**ANSWER, "results": "x"})),
        "results must be a valid list",
    ),
    "no result": (response(json.dumps({**ANSWER, "results": []})), "0 results for 1 images"),
    "gzip": (
        response(gzip.compress(bytes(10**7)), "content-encoding: gzip"),
        r"compressed \(gzip\)",
    ),
    "too many values": (response("[" + "[]," * 4_000_001 + "0]"), "more than 4,000,000 values"),
    "a redirect": (
        response("", "location: https://elsewhere.example/?token=x", status="302 Found"),
        "points to https://elsewhere.example; it is not followed",
    ),
    "a redirect without reason": (response("", status="301 Moved"), "points to another path"),
    "an error page": (response("<h1>No</h1>", status="404 Not Found", kind="text/html"), "404 Not"),
    "an odd status": (response("{}", status="299 Odd"), "cannot be read"),
    "a status of nobody": (response("x", status="799 Odd", kind="text/plain"), "799"),
    "a problem that is none": (response("[1]", status="400 Bad", kind=PROBLEM), "400"),
    "a detail that is no text": (
        response('{"detail": {"a": [1]}}', status="400 Bad", kind=PROBLEM),
        r'\{"a": \[1\]\}',
    ),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_an_invalid_response_is_one_error_with_a_sentence(kind: str) -> None:
    content, words = STRANGE[kind]
    with raw_server(content) as server, pytest.raises(RequestRefusedError, match=words):
        ask(server, timeout=10.0)
    assert len(server.requests) == 1


BROKEN = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\x1b[31m\r\n",
    "a cut body": response(json.dumps(ANSWER), length=10_000),
    "nothing": b"",
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_connection_is_one_error_and_is_retried(kind: str) -> None:
    def reply(_: RawServer, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(BROKEN[kind])

    with raw_server(reply) as server:
        error = refused(server, attempts=2)
        assert (error.status, len(server.requests)) == (0, 2)
        assert "does not respond (" in str(error)
        assert "\x1b" not in str(error)
    with raw_server(reply, GOOD) as server:
        assert ask(server).label == "7"


def test_endless_responses_are_not_read_to_the_end() -> None:
    sent = 0

    def flood(server: RawServer, connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        while not server.ended.is_set():
            sent += connection.send(b"[" * 65_536)

    with raw_server(flood) as server:
        error = refused(server, timeout=20.0, max_response_bytes=1_000_000)
        assert "larger than 1,000,000 bytes" in str(error)
    assert sent < 20_000_000


@pytest.mark.parametrize(
    ("call", "body"),
    [
        (lambda client: client.models(), "{}"),
        (lambda client: client.models(), '{"models": [1]}'),
        (lambda client: client.batches.list(), '{"batches": null}'),
        (lambda client: client.batches.list(), '{"batches": [{}]}'),
        (lambda client: client.batches.status("b"), '{"id": "b"}'),
        (lambda client: client.batches.start("a", "b", "c"), '{"id": 1}'),
        (lambda client: client.batches.cancel("b"), "[]"),
        (lambda client: client.batches.wait("b", timeout=5), '"running"'),
        (lambda client: client.batches.results("b"), "[]"),
        (lambda client: list(client.batches.rows("b")), '{"rows": []}'),
        (lambda client: list(client.batches.rows("b")), "[1]"),
    ],
)
def test_every_method_refuses_what_it_cannot_read(
    call: Callable[[Client], object], body: str
) -> None:
    with (
        raw_server(response(body)) as server,
        Client(server.url) as client,
        pytest.raises(RequestRefusedError, match="service"),
    ):
        call(client)


def test_members_of_later_services_are_ignored() -> None:
    later = {**ANSWER, "new": 1, "results": [{**RESULT, "newer": 2}]}
    with raw_server(response(json.dumps(later))) as server:
        assert ask(server).label == "7"


def test_sentences_of_others_steer_no_terminal() -> None:
    evil = "It is\x1b[2J full\u202e."
    fault = response(json.dumps({"detail": evil}), status="400 Bad", kind=PROBLEM)
    image = response(
        json.dumps({"detail": evil, "reason": "truncated"}), status="400 Bad", kind=PROBLEM
    )
    with raw_server(fault) as server:
        error = refused(server)
        assert str(error) == r"It is\x1b[2J full\u202e."
        assert error.problem["detail"] == evil
    with raw_server(image) as server, pytest.raises(BadImageError) as caught:
        ask(server)
    assert r"\x1b[2J" in str(caught.value)


def test_an_error_crosses_processes() -> None:
    error = RequestRefusedError(429, {"detail": "It is full."}, 1.5)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.status, again.retry_after) == ("It is full.", 429, 1.5)


# --- names, keys and addresses ----------------------------------------------------------------

LEADING_AWAY = (
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "a\nb",
    "a\r\nx: y",
    "a\0",
    "\udce9",
    "\u202ea",
)


@pytest.mark.parametrize("name", LEADING_AWAY)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with raw_server(GOOD) as server, Client(server.url) as client:
        calls: list[Callable[[], object]] = [
            lambda: client.predict(name, IMAGE),
            lambda: client.predict_many(name, [IMAGE]),
            lambda: client.predict_response(name, [IMAGE]),
            lambda: client.batches.status(name),
            lambda: client.batches.wait(name),
            lambda: client.batches.cancel(name),
            lambda: client.batches.results(name),
            lambda: list(client.batches.rows(name)),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=r"cannot name a (model|batch)") as caught:
                call()
            assert str(caught.value).isprintable()
        assert server.requests == []


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("a?version=2", "a%3Fversion%3D2"),
        ("a#b", "a%23b"),
        ("%2e%2e", "%252e%252e"),
        ("..%2fx", "..%252fx"),
        ("zahl 7é", "zahl%207%C3%A9"),
        ("a;b&c", "a%3Bb%26c"),
    ],
)
def test_other_names_are_one_part_of_the_path(name: str, quoted: str) -> None:
    rows = response("", kind="application/jsonl")
    with raw_server(GOOD, response(json.dumps(BATCH)), rows) as server:
        with Client(f"{server.url}/gateway") as client:
            client.predict(name, IMAGE)
            client.batches.status(name)
            assert list(client.batches.rows(name)) == []
        assert server.targets == [
            f"POST /gateway/v1/models/{quoted}/predict",
            f"GET /gateway/v1/batches/{quoted}",
            f"GET /gateway/v1/batches/{quoted}/results?format=jsonl&offset=0&limit=1000",
        ]


def test_a_parameter_is_one_parameter() -> None:
    with raw_server(GOOD) as server, Client(server.url) as client:
        client.predict("digits", IMAGE, version="3&top_k=1#x")
        assert server.targets == ["POST /v1/models/digits/predict?version=3%26top_k%3D1%23x"]


@pytest.mark.parametrize("key", ["", "er_a\n", "er_a\r\nx-evil: 1", "er_ä", "er a"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="the key has") as caught:
        Client(key=key)
    assert key == "" or key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "ftp://a", "http://", "http://[bad", "http://a:99999", "http://a?x=1"],
)
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="address of a service"):
        Client(url)


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": float("nan")}, {"attempts": 0}, {"timeout": -1}]
)
def test_options_that_are_none_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Client(**options)


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
def test_the_key_goes_nowhere_else(status: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with raw_server(GOOD) as other:
        location = f"location: http://localhost:{other.port}/v1/models/digits/predict"
        with raw_server(response("", location, status=status)) as server:
            error = refused(server)
            assert "not followed" in str(error)
            assert KEY.encode() in server.requests[0]
        assert other.requests == []
    assert KEY not in caplog.text
    client = Client(key=KEY)
    assert KEY not in repr(client) + repr(client.batches)
    client.close()


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.8.9.1", "[::1]", "0.0.0.0"]
)
def test_no_proxy_is_used_for_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert is_loopback(host)
    if host in ("localhost.", "127.8.9.1", "[::1]"):  # the server of the test is not there
        return
    with raw_server(GOOD) as server, Client(f"http://{host}:{server.port}") as client:
        assert client.predict("digits", IMAGE).label == "7"


@pytest.mark.parametrize("host", ["example.com", "localhost.example.com", "10.0.0.1", "127.com"])
def test_other_machines_may_have_a_proxy(host: str) -> None:
    assert not is_loopback(host)


# --- batches ----------------------------------------------------------------------------------


def breaks_answers(port: int, broken: int) -> Callable[[RawServer, socket.socket], None]:
    """Pass requests on, and break the connection once the work is done, a few times."""
    lock, left = threading.Lock(), [broken]

    def relay(server: RawServer, connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as behind:
            request = server.requests[-1].replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
            behind.sendall(request)
            answer = b""
            while more := behind.recv(65_536):
                answer += more
        with lock:
            left[0] -= 1
            is_broken = left[0] >= 0
        if not is_broken:
            connection.sendall(answer)

    return relay


def test_a_broken_start_is_repeated_and_starts_one_batch(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, "digits", versions=1)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(IMAGE)
    places: dict[str, Any] = {
        "batch_inputs": (str(photos),),
        "batch_outputs": (f"{tmp_path}/out/",),
    }
    with (
        http_service(registry, **places) as served,
        raw_server(breaks_answers(served.port, broken=3)) as server,
        Client(server.url, timeout=60.0) as client,
    ):
        batch = client.batches.start(str(photos), f"{tmp_path}/out/x", "digits", top_k=3)
        assert server.targets == ["POST /v1/batches"] * 4
        bodies = {request.partition(b"\r\n\r\n")[2] for request in server.requests}
        assert len(bodies) == 1
        assert len(served.launcher.started) == 1
        assert [found.id for found in client.batches.list()] == [batch.id]
        again = client.batches.start(str(photos), f"{tmp_path}/out/x", "digits", top_k=3)
        assert again.id == batch.id
        assert len(served.launcher.started) == 1


def test_waiting_ends_within_its_time_out_too() -> None:
    with raw_server(never) as server, Client(server.url, timeout=30.0) as client:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"batch b1 is unknown after 0\.5 s"):
            client.batches.wait("b1", timeout=0.5)
        assert time.monotonic() - began < 1.5
    with (
        raw_server(response(json.dumps(BATCH))) as server,
        Client(server.url) as client,
        pytest.raises(TimeoutError, match=r"batch b1 is running after 0\.5 s"),
    ):
        client.batches.wait("b1", timeout=0.5, every=0.1)


# --- threads and processes --------------------------------------------------------------------


def test_threads_share_a_client() -> None:
    with raw_server(GOOD) as server, Client(server.url, timeout=20.0) as client:
        labels: list[str | None] = []
        threads = [
            threading.Thread(
                target=lambda: labels.extend(
                    client.predict("digits", IMAGE).label for _ in range(10)
                )
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert labels == ["7"] * 80


def test_a_client_works_inside_a_running_event_loop() -> None:
    async def test(server: RawServer) -> None:
        assert ask(server).label == "7"  # as in a notebook

    with raw_server(GOOD) as server:
        asyncio.run(test(server))


def _predict(client: Client, found: Any) -> None:
    found.put(client.predict("digits", IMAGE).label)


def test_a_client_works_in_a_forked_process() -> None:
    forking = multiprocessing.get_context("fork")
    with raw_server(GOOD) as server, Client(server.url, timeout=20.0) as client:
        assert client.predict("digits", IMAGE).label == "7"
        found = forking.SimpleQueue()
        child = forking.Process(target=_predict, args=(client, found))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        assert found.get() == "7"


def test_a_closed_client_says_so() -> None:
    with raw_server(GOOD) as server:
        client = Client(server.url)
        assert client.predict("digits", IMAGE).label == "7"
        client.close()
        client.close()
        with pytest.raises(RuntimeError, match="the client is closed"):
            client.models()
        assert "eagleray-client" not in {thread.name for thread in threading.enumerate()}


def test_an_unreferenced_client_leaves_no_thread() -> None:
    with raw_server(GOOD) as server:
        client = Client(server.url)
        client.predict("digits", IMAGE)
        thread = next(one for one in threading.enumerate() if one.name == "eagleray-client")
        del client
        import gc

        gc.collect()
        thread.join(5)
        assert not thread.is_alive()
