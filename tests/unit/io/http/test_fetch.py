"""Redirects, bodies and failures of one URL, and hostile servers."""

from __future__ import annotations

import gzip
import ipaddress
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tenacity import RetryCallState, Retrying

from eagleray.core.errors import InputError
from eagleray.io.http import UrlPolicy
from eagleray.io.http.connections import Resolver
from eagleray.io.http.fetch import BACKOFF, parse_retry_after
from tests.support.http_site import (
    LIMIT,
    FakeDns,
    Handler,
    Reply,
    Site,
    drip,
    fetch,
    in_turn,
    on_one_port,
    policy,
    raw,
    status,
)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    ["/a.jpg", "a.jpg", "//127.0.0.1:{port}/a.jpg", "http://127.0.0.1:{port}/a.jpg", "/x/../a.jpg"],
)
def test_redirects_are_followed(site: Site, code: int, location: str) -> None:
    site.serves("/from", status(code, b"moved", Location=location.format(port=site.port)))
    assert fetch(site.url("/from"), policy()) == b"image"
    assert site.num_connections == 1


def test_a_redirect_may_be_spelled_in_utf8(site: Site) -> None:
    site.serves("/from", raw("HTTP/1.0 302 F\r\nLocation: /grün.jpg\r\n\r\n".encode()))
    site.serves("/gr%C3%BCn.jpg", b"green")
    assert fetch(site.url("/from"), policy()) == b"green"


@pytest.mark.parametrize(
    ("num_hops", "max_redirects", "arrives"),
    [(0, 0, True), (1, 0, False), (5, 5, True), (6, 5, False)],
)
def test_only_so_many_redirects(
    site: Site, num_hops: int, max_redirects: int, arrives: bool
) -> None:
    for hop in range(num_hops):
        site.serves(f"/{hop}", status(302, Location=f"/{hop + 1}"))
    site.serves(f"/{num_hops}", b"image")
    bounded = policy(max_redirects=max_redirects)
    if arrives:
        assert fetch(site.url("/0"), bounded) == b"image"
    else:
        with pytest.raises(OSError, match=f"redirects more than {max_redirects} times"):
            fetch(site.url("/0"), bounded)
        assert sum(site.asked.values()) == max_redirects + 1


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/a.jpg",
        "//127.0.0.2:{port}/a.jpg",
        "http://0.0.0.0:{port}/a.jpg",
        "http://2130706434:{port}/a.jpg",
        "http://127.2:{port}/a.jpg",
        "http://[::ffff:127.0.0.2]:{port}/a.jpg",
        "http://user:s3cret@127.0.0.1:{port}/a.jpg",
        "http://127.0.0.1:{port}\\@127.0.0.2:{port}/",
        "http:\\\\127.0.0.2:{port}/a.jpg",
        "\\\\127.0.0.2:{port}\\a.jpg",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.jpg",
        "gopher://127.0.0.2:{port}/_GET",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "http://[::1",
        "http://a]b/",
        "ht\ttp://127.0.0.2:{port}/",
    ],
)
def test_a_redirect_is_checked_like_any_url(location: str) -> None:
    with on_one_port() as (site, secret):
        site.serves("/from", status(302, Location=location.format(port=site.port)))
        with pytest.raises(InputError) as caught:
            fetch(site.url("/from"), policy(private_networks=("127.0.0.1/32",)))
        assert "s3cret" not in str(caught.value)
        assert secret.num_connections == 0
        assert site.asked == {"/from": 1}  # a refusal is final


def test_a_redirect_to_a_host_that_is_not_listed_is_refused(site: Site) -> None:
    site.serves("/from", status(302, Location=site.url(host="localhost")))
    listed = policy(hosts=("127.0.0.1:*",))
    with pytest.raises(InputError, match=r"^127\.0\.0\.1 redirects, .* localhost:\d+ is not among"):
        fetch(site.url("/from"), listed)
    both = policy(hosts=("127.0.0.1:*", "localhost:*"))
    assert fetch(site.url("/from"), both) == b"image"


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> Reply:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + end)


BODY = bytes(range(256)) * 1000


@pytest.mark.parametrize("limit", [0, 1, 1000, len(BODY) - 1, len(BODY), len(BODY) + 1, LIMIT])
@pytest.mark.parametrize(
    "reply",
    [
        status(200, BODY),
        chunked(BODY[:1], BODY[1:100_000], BODY[100_000:]),
        raw(b"HTTP/1.0 200 OK\r\n\r\n" + BODY),
    ],
    ids=["length", "chunks", "until-it-closes"],
)
def test_at_most_the_limit_is_read(site: Site, reply: Reply, limit: int) -> None:
    site.serves("/body", reply)
    assert fetch(site.url("/body"), policy(), limit=limit) == BODY[:limit]


def test_a_body_without_end_stops_at_the_limit(site: Site) -> None:
    sent = 0
    stopped = threading.Event()

    def endless(handler: Handler) -> None:
        nonlocal sent
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        try:
            while True:
                handler.wfile.write(b"\0" * 65536)
                sent += 65536
        finally:
            stopped.set()

    site.serves("/endless", endless)
    assert fetch(site.url("/endless"), policy(), limit=100_000) == b"\0" * 100_000
    assert stopped.wait(5)  # by closing the connection, not by reading on
    assert sent < 50_000_000


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "identity, gzip", "x-gzip", "br", "deflate"])
def test_compressed_content_is_not_expanded(site: Site, encoding: str) -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    site.serves("/bomb", status(200, bomb, Content_Encoding=encoding))
    with pytest.raises(OSError, match="sends compressed content although none was requested"):
        fetch(site.url("/bomb"), policy())
    assert site.headers[0]["Accept-Encoding"] == "identity"
    assert site.asked == {"/bomb": 1}


@pytest.mark.parametrize("encoding", ["identity", "", "aws-chunked", "binary"])
def test_other_content_encodings_are_bytes_as_they_are(site: Site, encoding: str) -> None:
    site.serves("/a", status(200, gzip.compress(b"image"), Content_Encoding=encoding))
    assert gzip.decompress(fetch(site.url("/a"), policy())) == b"image"


@pytest.mark.parametrize(
    ("code", "error", "num_asked"),
    [
        (204, OSError, 1),
        (206, OSError, 1),
        (300, OSError, 1),
        (304, OSError, 1),
        (400, OSError, 1),
        (401, PermissionError, 1),
        (403, PermissionError, 1),
        (404, FileNotFoundError, 1),
        (405, OSError, 1),
        (410, FileNotFoundError, 1),
        (451, OSError, 1),
        (408, OSError, 4),
        (429, OSError, 4),
        (500, OSError, 4),
        (503, OSError, 4),
        (599, OSError, 4),
    ],
)
def test_responses_of_the_server(
    site: Site, code: int, error: type[OSError], num_asked: int
) -> None:
    site.serves("/a", status(code, b"" if code in (204, 304) else b"sorry"))
    with pytest.raises(error, match=rf"^127\.0\.0\.1 responds {code}") as caught:
        fetch(site.url("/a"), policy())
    plain = error is OSError
    assert isinstance(caught.value, FileNotFoundError | PermissionError) is not plain
    assert site.asked == {"/a": num_asked}


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(500),
        status(503, b"busy"),
        raw(b""),
        raw(b"", reset=True),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome", reset=True),
        chunked(b"some", end=b""),
        chunked(b"some", end=b"9\r\nmore"),
        drip(b"", every=5),
    ],
    ids=[
        "429",
        "500",
        "503",
        "closed",
        "reset",
        "truncated",
        "reset-in-body",
        "chunk-missing",
        "chunk-truncated",
        "silent",
    ],
)
def test_faults_that_pass_are_tried_again(site: Site, fault: Reply) -> None:
    site.serves("/a", in_turn(fault, fault, status(200, b"image")))
    assert fetch(site.url("/a"), policy(read_seconds=0.5)) == b"image"
    assert site.asked == {"/a": 3}


def test_a_redirect_is_walked_again_from_its_start(site: Site) -> None:
    site.serves("/from", status(302, Location="/to"))
    site.serves("/to", in_turn(status(503), status(200, b"image")))
    assert fetch(site.url("/from"), policy()) == b"image"
    assert site.asked == {"/from": 2, "/to": 2}


def test_retry_after_is_respected(site: Site) -> None:
    site.serves("/a", in_turn(status(429, Retry_After="1"), status(200, b"image")))
    start = time.monotonic()
    assert fetch(site.url("/a"), policy()) == b"image"
    assert 1 <= time.monotonic() - start < 8


@pytest.mark.parametrize(("attempt", "longest"), [(1, 0.25), (2, 0.5), (3, 1), (9, 8)])
def test_pauses_grow_and_differ(attempt: int, longest: float) -> None:
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempt
    pauses = [BACKOFF(state) for _ in range(300)]
    assert longest / 2 < max(pauses) <= longest
    assert min(pauses) < longest / 2


def test_no_wait_goes_beyond_the_time_of_the_fetch(site: Site) -> None:
    site.serves("/a", status(503, Retry_After="20"))
    start = time.monotonic()
    with pytest.raises(OSError, match="responds 503"):
        fetch(site.url("/a"), policy())
    assert time.monotonic() - start < 8
    assert site.asked == {"/a": 1}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        ("3600", 30),
        ("9" * 4000, 30),
        ("9" * 5000, 0),
        ("-5", 0),
        ("soon", 0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0),
        ("Fri, 31 Dec 2099 23:59:59 GMT", 30),
        ("Fri, 99 Dec 99999999999 23:59:59 GMT", 0),
    ],
)
def test_retry_after_is_limited(header: str | None, seconds: float) -> None:
    assert parse_retry_after(header) == seconds


@pytest.mark.parametrize(
    "reply",
    [
        drip(b"", every=30),
        drip(b"HTTP/1.1 200 OK\r\nX-A: ", every=0.05),
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", every=0.05),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", every=0.05),
        drip(b"HTTP/1.1 302 Found\r\nLocation: /", every=0.05),
    ],
    ids=["silent", "headers", "body", "chunks", "redirect"],
)
def test_a_slow_server_costs_no_more_than_the_time_of_the_fetch(site: Site, reply: Reply) -> None:
    site.serves("/slow", reply)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^127\.0\.0\.1 does not respond in time$"):
        fetch(site.url("/slow"), policy(read_seconds=5, total_seconds=0.6))
    assert 0.5 < time.monotonic() - start < 4


def test_a_slow_error_page_is_not_waited_for(site: Site) -> None:
    site.serves("/a", drip(b"HTTP/1.1 404 Not Found\r\nContent-Length: 100000\r\n\r\n"))
    start = time.monotonic()
    with pytest.raises(FileNotFoundError):
        fetch(site.url("/a"), policy())
    assert time.monotonic() - start < 8


def test_a_connection_that_is_never_accepted_times_out() -> None:
    with socket.socket() as deaf, ExitStack() as fillers:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):  # a queue that is full leaves further connections without an answer
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        impatient = policy(connect_seconds=0.2, total_seconds=0.5)
        with pytest.raises(TimeoutError):
            fetch(f"http://127.0.0.1:{deaf.getsockname()[1]}/", impatient)


def test_a_refused_connection_is_not_tried_again() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        dns = FakeDns(["127.0.0.1"])
        with pytest.raises(ConnectionRefusedError, match=f"refuses connections on port {port}"):
            fetch(f"http://images.test:{port}/", policy(), dns)
    assert dns.asked == ["images.test"]


@pytest.mark.parametrize(
    ("code", "error", "num_asked"),
    [(socket.EAI_NONAME, OSError, 1), (socket.EAI_AGAIN, TimeoutError, 4)],
)
def test_a_name_without_an_address(code: int, error: type[OSError], num_asked: int) -> None:
    asked = []

    def resolver(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        raise socket.gaierror(code, "no")

    with pytest.raises(error, match=r"^images\.test cannot be resolved to an address$"):
        fetch("http://images.test/", policy(hosts=("*",)), resolver)
    assert asked == ["images.test"] * num_asked


SECRET = "s3cret"


def test_no_message_traceback_or_log_repeats_a_secret_of_the_url(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    site.serves("/403", status(403))
    site.serves("/503", status(503))
    site.serves("/reset", raw(b"", reset=True))
    site.serves("/garbage", raw(b"garbage\r\n\r\n"))
    site.serves("/header", raw(b"HTTP/1.1 403 F\r\nno colon\r\n\r\n"))
    site.serves("/away", status(302, Location=f"http://[::1/{SECRET}?{SECRET}"))
    site.serves("/out", status(302, Location=f"http://elsewhere.test/?{SECRET}"))
    site.serves("/silent", drip(b"", every=30))
    port = site.port
    urls = [
        *(
            site.url(f"/{name}?token={SECRET}")
            for name in ("403", "404", "503", "reset", "garbage", "header", "away", "out", "silent")
        ),
        f"http://user:{SECRET}@127.0.0.1:{port}/",
        f"http://{SECRET}@127.0.0.1:{port}/",
        f"http://user:{SECRET}@[::1/",
        f"http://user:{SECRET}@a b/",
        f"http://user:{SECRET}\\@127.0.0.1/",
        f"http://127.0.0.1:{SECRET}@/",
        f"ftp://127.0.0.1/?{SECRET}",
        f"http://127.0.0.1:99999/?{SECRET}",
        f"http://127.0.0.1:1/?{SECRET}",
        f"https://127.0.0.1:{port}/?{SECRET}",
    ]
    strict = policy(hosts=("127.0.0.1:*",), read_seconds=0.2, total_seconds=0.5)
    for url in urls:
        with pytest.raises((OSError, InputError)) as caught:
            fetch(url, strict)
        told = "".join(
            line
            for line in traceback.format_exception(caught.value)
            if not line.lstrip().startswith("File")
        )
        assert SECRET not in str(caught.value), url
        assert SECRET not in told, url
    assert SECRET not in caplog.text


HOSTS = [
    "127.0.0.1",
    "127.1",
    "0",
    "0.0.0.0",
    "2130706433",
    "0x7f000001",
    "0177.1",
    "localhost",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:0:0]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "①②⑦.⓪.⓪.①",
    "images.test",
]
GLUE = ["", "@", ":", "/", "//", "\\", "#", "?", "%", "%25", "%2e", ".", "[", "]", "\t", "\n", " "]
GLUE += ["\0", "a", "user:pw@", "。", "\u00ad", "\u200b", "\u202e", "::", "-"]

pieces = st.lists(
    st.sampled_from(HOSTS) | st.sampled_from(GLUE) | st.text(max_size=2), min_size=1, max_size=5
).map("".join)
schemes = st.sampled_from(
    ["http://", "https://", "HTTP://", "http:", "http:/", "http:///", "//", "\\\\", "", "http:\\\\"]
)


def worst_dns(address: str) -> Resolver:
    """Resolve every name to one address, and no public one."""

    def resolver(host: str, port: int, **_: Any) -> list[Any]:
        kind, numeric = socket.SOCK_STREAM, socket.AI_NUMERICHOST
        try:
            found = socket.getaddrinfo(host, port, type=kind, flags=numeric)
        except (OSError, UnicodeError):
            found = socket.getaddrinfo(address, port, type=kind, flags=numeric)
        for *_kind, place in found:
            if UrlPolicy(hosts=("*",)).allows_address(ipaddress.ip_address(place[0])):
                raise socket.gaierror(socket.EAI_NONAME, "this test has no internet")
        return found

    return resolver


fuzz = settings(
    max_examples=500,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@fuzz
@given(scheme=schemes, authority=pieces, tail=st.sampled_from(["", "/", "/a?b#c", "?@127.0.0.1"]))
@example(scheme="http://", authority="127.0.0.1", tail="")
@example(scheme="http://", authority="images.test", tail="/")
def test_no_url_connects_to_an_address_that_is_not_allowed(
    everywhere: list[Site],
    scheme: str,
    authority: str,
    tail: str,
) -> None:
    dns = worst_dns("127.0.0.1")
    url = f"{scheme}{authority}:{everywhere[0].port}{tail}"
    with suppress(InputError, OSError):
        fetch(url, policy(private_networks=()), dns)
        pytest.fail(f"{url!r} was fetched")
    assert [site.num_connections for site in everywhere] == [0] * len(everywhere), url


@pytest.fixture(scope="module")
def open_and_secret() -> Iterator[tuple[Site, Site]]:
    """An allowed server that redirects to what it is told, and one beside it that is forbidden."""
    with on_one_port() as (opened, secret):
        yield opened, secret


@fuzz
@given(scheme=schemes, authority=pieces)
@example(scheme="http://", authority="127.0.0.2")
@example(scheme="//", authority="127.0.0.2")
def test_no_redirect_connects_to_an_address_that_is_not_allowed(
    open_and_secret: tuple[Site, Site],
    scheme: str,
    authority: str,
) -> None:
    dns = worst_dns("127.0.0.2")
    opened, secret = open_and_secret
    authority = authority.replace("127.0.0.1", "127.0.0.2").replace("127.1", "127.2")
    location = f"{scheme}{authority}:{opened.port}/".encode("utf-8", "surrogatepass")
    if b"\n" in location or b"\r" in location:
        location = b"/"
    opened.serves("/", raw(b"HTTP/1.1 302 F\r\nLocation: " + location + b"\r\n\r\n"))
    with suppress(InputError, OSError):
        fetch(opened.url("/"), policy(private_networks=("127.0.0.1/32",)), dns)
    assert secret.num_connections == 0, location


lines = st.lists(
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 302 F\r\n",
            b"HTTP/1.1 404 N\r\n",
            b"HTTP/9.9 999 \xff\r\n",
            b"Location: /a\r\n",
            b"Location: \xff\xfe\r\n",
            b"Content-Length: 5\r\n",
            b"Content-Length: -5\r\n",
            b"Content-Length: 99999999999999999999999\r\n",
            b"Content-Length: 1, 2\r\n",
            b"Content-Encoding: gzip\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: close\r\n",
            b"X-\xff: \x00\r\n",
            b"\r\n",
            b"5\r\nimage\r\n",
            b"-1\r\n",
            b"fffffffffffffffffffffff\r\n",
            b"0\r\n\r\n",
            b"A" * 70_000,
        ]
    )
    | st.binary(max_size=8),
    max_size=8,
).map(b"".join)


@settings(max_examples=300)
@given(content=lines, limit=st.integers(0, 6))
@example(content=b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage", limit=5)
def test_any_response_is_bytes_or_an_error(
    open_and_secret: tuple[Site, Site], content: bytes, limit: int
) -> None:
    site = open_and_secret[0]
    site.serves("/a", raw(content))
    with suppress(OSError, InputError):
        assert len(fetch(site.url("/a"), policy(total_seconds=0.02), limit=limit)) <= limit
