"""URLs: fetched from where the policy says and from nowhere else, whatever a URL or server does."""

from __future__ import annotations

import datetime
import gzip
import http.server
import ipaddress
import json
import os
import pickle
import socket
import ssl
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tenacity import RetryCallState, Retrying, wait_none

from eagleray.core.errors import InputError
from eagleray.io.http import UrlPolicy, connections, fetch, fetch_url

LIMIT = 10_000_000
LOOPBACK = ("127.0.0.0/8", "::1/128")


def policy(**overrides: Any) -> UrlPolicy:
    """Any host and port, loopback too, with little patience."""
    values: dict[str, Any] = {
        "hosts": ("*:*",),
        "private_networks": LOOPBACK,
        "connect_seconds": 2,
        "read_seconds": 2,
        "total_seconds": 10,
    }
    return UrlPolicy(**(values | overrides))


# --- servers ------------------------------------------------------------------------------------

Reply = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Site

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.asked[self.requestline.split()[1]] += 1
            self.server.headers.append(dict(self.headers.items()))
        reply = self.server.replies.get(self.path.partition("?")[0])
        if reply is None:
            self.answer(404, b"no such page")
        else:
            with suppress(OSError):  # the client has enough
                reply(self)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Site(http.server.ThreadingHTTPServer):
    """An HTTP server on a free port that counts connections and requests."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.lock = threading.Lock()
        self.num_connections = 0
        self.num_open = 0
        self.max_open = 0
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.replies: dict[str, Reply] = {}
        self.ending = threading.Event()
        super().__init__((host, port), Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str = "/a.jpg", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.num_connections += 1
            self.num_open += 1
            self.max_open = max(self.max_open, self.num_open)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self.num_open -= 1
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def serves(self, path: str, reply: Reply | bytes) -> None:
        if isinstance(reply, bytes):
            body = reply
            self.replies[path] = lambda handler: handler.answer(200, body)
        else:
            self.replies[path] = reply


class SixSite(Site):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()


def in_turn(*replies: Reply) -> Reply:
    """One reply for each request; the last one stays."""
    left = list(replies)

    def reply(handler: Handler) -> None:
        chosen = left.pop(0) if len(left) > 1 else left[0]
        chosen(handler)

    return reply


def status(code: int, body: bytes = b"", **headers: str) -> Reply:
    return lambda handler: handler.answer(code, body, **headers)


def raw(content: bytes, *, reset: bool = False) -> Reply:
    """Send bytes as they are, and end the connection."""

    def reply(handler: Handler) -> None:
        handler.wfile.write(content)
        handler.wfile.flush()
        handler.close_connection = True
        if reset:
            hard = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)

    return reply


def drip(start: bytes, every: float = 0.05) -> Reply:
    """Send some bytes, and then one more now and then, without an end."""

    def reply(handler: Handler) -> None:
        handler.wfile.write(start)
        while not handler.server.ending.wait(every):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    return reply


@contextmanager
def running(site: Site) -> Iterator[Site]:
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    try:
        yield site
    finally:
        site.ending.set()
        site.shutdown()
        thread.join()
        site.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with running(Site()) as server:
        server.serves("/a.jpg", b"image")
        yield server


@pytest.fixture(scope="module")
def everywhere() -> Iterator[list[Site]]:
    """Servers on one port of every address of this machine, IPv6 too where it is there."""
    with ExitStack() as stack:
        sites = [stack.enter_context(running(Site("0.0.0.0")))]
        if socket.has_ipv6:
            with suppress(OSError):
                sites.append(stack.enter_context(running(SixSite("::", sites[0].port))))
        yield sites


@pytest.fixture(autouse=True)
def fresh_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No connection of another test, and no pause before another attempt."""
    monkeypatch.setattr(fetch, "_backoff", wait_none())
    connections._pools.cache_clear()
    yield
    connections._pools.cache_clear()


Answer = tuple[Any, ...]


def names(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Simulate DNS: an answer for each look-up, the last one stays. Returns the names asked for."""
    left, asked = list(answers), []

    def look_up(host: str, port: int, **_: Any) -> list[Answer]:
        asked.append(host)
        found: list[Any] = []
        for text in left.pop(0) if len(left) > 1 else left[0]:
            found += socket.getaddrinfo(
                text, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
        return found

    monkeypatch.setattr(connections, "_look_up", look_up)
    return asked


# --- the policy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"hosts": "images.example.com"}, "hosts: 'images.example.com' is not a list of texts"),
        ({"hosts": None}, "hosts: None is not a list"),
        ({"hosts": (b"a",)}, "hosts: "),
        ({"hosts": ("",)}, "hosts: '' is no pattern"),
        ({"hosts": ("https://images.example.com",)}, "hosts: 'https://images.example.com' is no"),
        ({"hosts": ("images.example.com/a",)}, "hosts: "),
        ({"hosts": ("user@images.example.com",)}, "hosts: "),
        ({"hosts": ("images.*.com",)}, "hosts: "),
        ({"hosts": ("*images.example.com",)}, "hosts: "),
        ({"hosts": ("*.*",)}, "hosts: "),
        ({"hosts": ("*.[::1]",)}, "hosts: "),
        ({"hosts": ("127.1",)}, "hosts: "),
        ({"hosts": ("::1",)}, "hosts: "),
        ({"hosts": ("a.com:0",)}, "hosts: "),
        ({"hosts": ("a.com:65536",)}, "hosts: "),
        ({"hosts": ("a.com\n",)}, "hosts: "),
        ({"private_networks": ("10.0.0.0/33",)}, "private_networks: '10.0.0.0/33'"),
        ({"private_networks": ("10.1.0.0/8",)}, "private_networks: 10.1.0.0/8 has host bits set"),
        ({"private_networks": ("intranet",)}, "private_networks: "),
        ({"private_networks": ("0.0.0.0/0",)}, "private_networks: 0.0.0.0/0 is wider"),
        ({"private_networks": ("::/0",)}, "private_networks: ::/0 is wider"),
        ({"schemes": ("ftp",)}, "schemes: 'ftp' is neither"),
        ({"schemes": ()}, "schemes: "),
        ({"max_redirects": -1}, "max_redirects: "),
        ({"max_redirects": 21}, "max_redirects: "),
        ({"max_redirects": True}, "max_redirects: "),
        ({"max_redirects": 2.0}, "max_redirects: "),
        ({"connect_seconds": 0}, "connect_seconds: "),
        ({"read_seconds": float("nan")}, "read_seconds: "),
        ({"total_seconds": float("inf")}, "total_seconds: "),
        ({"total_seconds": "60"}, "total_seconds: "),
    ],
)
def test_a_wrong_policy_names_its_field(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as caught:
        UrlPolicy(**fields)
    assert str(caught.value).startswith(f"URL policy, {error}")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_policies_that_mean_the_same_are_equal_and_have_one_json_form() -> None:
    one = UrlPolicy(
        hosts=("B.example.com.", "*.Faß.de", "b.example.com", "[::FFFF:8.8.8.8]:080"),
        private_networks=("fc00::/7", "10.0.0.0/8", "10.0.0.0/8"),
        schemes=("https", "http"),
        total_seconds=60,
    )
    other = UrlPolicy(
        hosts=("*.xn--fa-hia.de", "8.8.8.8:80", "b.example.com"),
        private_networks=("10.0.0.0/8", "fc00::/7"),
        total_seconds=60.0,
    )
    assert one == other
    assert hash(one) == hash(other)
    assert one.to_json() == other.to_json()
    assert json.loads(one.to_json())["hosts"] == ["*.xn--fa-hia.de", "8.8.8.8:80", "b.example.com"]
    assert UrlPolicy.from_json(one.to_json()) == one
    assert one.allows("http://8.8.8.8/")
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize("text", ["", "[]", "3", '{"host": []}', '{"hosts": 3}', '{"hosts": [3]}'])
def test_a_policy_that_is_no_json_form_of_one_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        UrlPolicy.from_json(text)


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        ((), "https://images.example.com/", False),
        (("images.example.com",), "https://images.example.com/a.jpg?b", True),
        (("images.example.com",), "http://images.example.com/", True),
        (("images.example.com",), "HTTPS://IMAGES.Example.COM./", True),
        (("images.example.com",), "https://images.example.com:443/", True),
        (("images.example.com",), "https://images.example.com:80/", False),
        (("images.example.com",), "https://images.example.com:8443/", False),
        (("images.example.com",), "https://example.com/", False),
        (("images.example.com",), "https://images.example.com.evil.com/", False),
        (("images.example.com",), "https://evil.com/images.example.com", False),
        (("images.example.com",), "https://evil.com#images.example.com", False),
        (("images.example.com",), "https://evil.com?@images.example.com", False),
        (("images.example.com:8443",), "https://images.example.com:8443/", True),
        (("images.example.com:8443",), "https://images.example.com/", False),
        (("images.example.com:*",), "https://images.example.com:1/", True),
        (("*.example.com",), "https://a.example.com/", True),
        (("*.example.com",), "https://a.b.example.com/", True),
        (("*.example.com",), "https://example.com/", False),
        (("*.example.com",), "https://badexample.com/", False),
        (("*.example.com:81",), "http://a.example.com:81/", True),
        (("*.faß.de",), "https://a.xn--fa-hia.de/", True),
        (("xn--fa-hia.de",), "https://faß.de/", True),
        (("fass.de",), "https://faß.de/", False),
        (("*",), "https://anything.example/", True),
        (("*",), "https://8.8.8.8/", True),
        (("*",), "https://anything.example:22/", False),
        (("8.8.8.8",), "http://[::ffff:808:808]/", True),
        (("[2001:db8::1]",), "http://[2001:0DB8:0::1]/", True),
        (("*",), "ftp://a.example.com/", False),
        (("*",), "file:///etc/passwd", False),
        (("*",), "//a.example.com/", False),
        (("*",), "a.example.com", False),
        (("*",), "", False),
    ],
)
def test_hosts_that_a_policy_allows(hosts: tuple[str, ...], url: str, allowed: bool) -> None:
    assert UrlPolicy(hosts=hosts).allows(url) is allowed


def test_schemes_can_be_limited(site: Site) -> None:
    assert not UrlPolicy(hosts=("*",), schemes=("https",)).allows("http://a.example.com/")
    with pytest.raises(InputError, match="http is not fetched here; use https"):
        fetch_url(site.url(), policy(schemes=("https",)), limit=LIMIT)
    assert site.num_connections == 0


def test_the_refusal_says_what_would_allow_it(site: Site) -> None:
    with pytest.raises(InputError) as caught:
        fetch_url(site.url(), UrlPolicy(private_networks=LOOPBACK), limit=LIMIT)
    pattern = f"127.0.0.1:{site.port}"
    assert f"--allow-urls '{pattern}'" in str(caught.value)
    allowed = UrlPolicy(hosts=(pattern,), private_networks=LOOPBACK)
    assert fetch_url(site.url(), allowed, limit=LIMIT) == b"image"


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True),
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("2002:808:808::1", True),  # 6to4 of 8.8.8.8
        ("64:ff9b::808:808", True),  # NAT64 of 8.8.8.8
        ("0.0.0.0", False),
        ("0.1.2.3", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),  # carrier-grade NAT
        ("100.100.100.200", False),  # metadata of Alibaba's cloud
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("168.63.129.16", False),
        ("169.254.169.254", False),  # metadata of most clouds
        ("172.16.0.1", False),
        ("192.0.0.9", False),
        ("192.0.0.192", False),
        ("192.0.2.1", False),
        ("192.88.99.1", False),
        ("192.168.0.1", False),
        ("198.18.0.1", False),
        ("203.0.113.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::808:808", False),
        ("100::1", False),
        ("2001::1", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),  # Teredo
        ("2001:db8::1", False),
        ("2002:7f00:1::", False),
        ("2002:a00:1::1", False),
        ("3fff::1", False),
        ("4000::1", False),
        ("5f00::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("fe80::1%1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
    ],
)
def test_addresses_that_are_connected_to(address: str, allowed: bool) -> None:
    assert UrlPolicy(hosts=("*",)).allows_address(ipaddress.ip_address(address)) is allowed


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.0.0.1", True),
        ("fd12::1", True),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("192.168.0.1", False),
        ("fe80::1", False),
    ],
)
def test_private_networks_are_allowed_by_name(address: str, allowed: bool) -> None:
    inside = UrlPolicy(hosts=("*",), private_networks=("10.0.0.0/8", "fc00::/7"))
    assert inside.allows_address(ipaddress.ip_address(address)) is allowed


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0X7F.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.01",
        "0",
        "0.0.0.0",
        "00.0.0.0",
        "localhost",
        "LOCALHOST.",
        "localhos%74",
        "127%2e0%2e0%2e1",
        "127.0.0.1%00",
        "127.0.0.1%20",
        "%31%32%37.0.0.1",
        "①②⑦.0.0.1",
        "127。0。0。1",
        "\uff11\uff12\uff17.0.0.1",
        "ⓛocalhost",
        "localho\u017ft",
        "127.0.0.1\t",
        "127.0\n.0.1",
        "127.0.0.1\\",
        "8.8.8.8\\@127.0.0.1",
        "8.8.8.8@127.0.0.1",
        "user:pass@127.0.0.1",
        "a:b@c@127.0.0.1",
        "@127.0.0.1",
        " 127.0.0.1",
        "127.0.0.1 ",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[::1%25lo]",
        "[::1%lo]",
        "[fe80::1%25lo]",
        "[127.0.0.1]",
        "[::1",
        "::1",
        "[v1.fe80::a]",
        "",
        ".",
        "..127.0.0.1",
        "127.0.0.1..",
        "-127.0.0.1",
        "127.0.0.1:80",
        "127.0.0.1#@8.8.8.8",
    ],
)
def test_no_spelling_of_loopback_gets_through(everywhere: list[Site], host: str) -> None:
    for scheme in ("http", "https"):
        url = f"{scheme}://{host}:{everywhere[0].port}/"
        with pytest.raises(InputError):
            fetch_url(url, policy(private_networks=()), limit=LIMIT)
    assert [site.num_connections for site in everywhere] == [0] * len(everywhere)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1.", "127%2e0%2e0%2e1", "[::ffff:127.0.0.1]", "localhost", "LocalHost."],
)
def test_spellings_with_one_meaning_are_read(site: Site, host: str) -> None:
    assert fetch_url(site.url(host=host), policy(), limit=LIMIT) == b"image"
    assert site.headers[0]["Host"] in (f"127.0.0.1:{site.port}", f"localhost:{site.port}")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/a b.jpg", "/a%20b.jpg"),
        ("/a%20b.jpg", "/a%20b.jpg"),
        ("/100%.jpg", "/100%25.jpg"),
        ("/grün/猫.jpg", "/gr%C3%BCn/%E7%8C%AB.jpg"),
        ("/a.jpg?x=1&y=ä#part", "/a.jpg?x=1&y=%C3%A4"),
        ("?x=/../", "/?x=/../"),
        ("", "/"),
        ("/a/../b", "/b"),
        ("//evil.example/a", "//evil.example/a"),
        ("/\ud800", "/%ED%A0%80"),
    ],
)
def test_names_arrive_at_the_server(site: Site, path: str, asked: str) -> None:
    with pytest.raises(FileNotFoundError):
        fetch_url(site.url(path).replace("a.jpg", "b.jpg"), policy(), limit=LIMIT)
    assert list(site.asked) == [asked.replace("a.jpg", "b.jpg")]


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["8.8.8.8", "127.0.0.1"],
        ["8.8.8.8", "2606:4700::1111", "::ffff:127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["0.0.0.0"],
    ],
)
def test_one_forbidden_address_behind_a_name_is_enough(
    site: Site, monkeypatch: pytest.MonkeyPatch, answer: list[str]
) -> None:
    names(monkeypatch, answer)
    with pytest.raises(InputError, match=r"^images\.test leads to an address outside") as caught:
        fetch_url(site.url(host="images.test"), policy(private_networks=()), limit=LIMIT)
    assert "EAGLERAY_URL_PRIVATE_NETWORKS" in str(caught.value)
    assert site.num_connections == 0


def test_a_name_that_changes_its_address_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(Site("127.0.0.1")) as allowed, running(Site("127.0.0.2", allowed.port)) as secret:
        allowed.serves("/once", raw(b"HTTP/1.0 200 OK\r\n\r\npublic"))
        only_one = policy(private_networks=("127.0.0.1/32",))
        asked = names(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
        url = allowed.url("/once", host="images.test")
        assert fetch_url(url, only_one, limit=LIMIT) == b"public"
        assert asked == ["images.test"]  # one resolution for one connection
        with pytest.raises(InputError):
            fetch_url(url, only_one, limit=LIMIT)
        assert asked == ["images.test"] * 2
        assert secret.num_connections == 0


def test_the_next_address_is_tried_when_one_does_not_answer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    names(monkeypatch, ["127.0.0.9", "127.0.0.1"])
    assert fetch_url(site.url(host="images.test"), policy(), limit=LIMIT) == b"image"
    assert site.headers[0]["Host"] == f"images.test:{site.port}"


def test_an_open_connection_of_one_policy_is_closed_to_another(site: Site) -> None:
    assert fetch_url(site.url(), policy(), limit=LIMIT) == b"image"
    with pytest.raises(InputError):
        fetch_url(site.url(), policy(private_networks=()), limit=LIMIT)
    assert site.num_connections == 1
    assert sum(site.asked.values()) == 1


def test_nothing_connects_outside_of_a_fetch(site: Site) -> None:
    pool = connections._JudgedPool("127.0.0.1", site.port)
    with pytest.raises(LookupError):
        pool.urlopen("GET", "/a.jpg", retries=False)
    assert site.num_connections == 0


@pytest.mark.parametrize("scheme", ["http", "https", "all"])
def test_proxies_of_the_environment_are_not_used(
    site: Site, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with running(Site()) as proxy:
        for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            monkeypatch.setenv(name, proxy.url(""))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert fetch_url(site.url(), policy(), limit=LIMIT) == b"image"
        assert proxy.num_connections == 0


# --- redirects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    ["/a.jpg", "a.jpg", "//127.0.0.1:{port}/a.jpg", "http://127.0.0.1:{port}/a.jpg", "/x/../a.jpg"],
)
def test_redirects_are_followed(site: Site, code: int, location: str) -> None:
    site.serves("/from", status(code, b"moved", Location=location.format(port=site.port)))
    assert fetch_url(site.url("/from"), policy(), limit=LIMIT) == b"image"
    assert site.num_connections == 1


def test_a_redirect_may_be_spelled_in_utf8(site: Site) -> None:
    site.serves("/from", raw("HTTP/1.0 302 F\r\nLocation: /grün.jpg\r\n\r\n".encode()))
    site.serves("/gr%C3%BCn.jpg", b"green")
    assert fetch_url(site.url("/from"), policy(), limit=LIMIT) == b"green"


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
        assert fetch_url(site.url("/0"), bounded, limit=LIMIT) == b"image"
    else:
        with pytest.raises(OSError, match=f"redirects more than {max_redirects} times"):
            fetch_url(site.url("/0"), bounded, limit=LIMIT)
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
def test_a_redirect_is_judged_like_any_url(location: str) -> None:
    with running(Site("127.0.0.1")) as site, running(Site("127.0.0.2", site.port)) as secret:
        site.serves("/from", status(302, Location=location.format(port=site.port)))
        with pytest.raises(InputError) as caught:
            fetch_url(site.url("/from"), policy(private_networks=("127.0.0.1/32",)), limit=LIMIT)
        assert "s3cret" not in str(caught.value)
        assert secret.num_connections == 0
        assert site.asked == {"/from": 1}  # a refusal is final


def test_a_redirect_to_a_host_that_is_not_listed_is_refused(site: Site) -> None:
    site.serves("/from", status(302, Location=site.url(host="localhost")))
    listed = policy(hosts=("127.0.0.1:*",))
    with pytest.raises(InputError, match=r"^127\.0\.0\.1 redirects, .* localhost:\d+ is not among"):
        fetch_url(site.url("/from"), listed, limit=LIMIT)
    both = policy(hosts=("127.0.0.1:*", "localhost:*"))
    assert fetch_url(site.url("/from"), both, limit=LIMIT) == b"image"


# --- bodies -------------------------------------------------------------------------------------


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
    assert fetch_url(site.url("/body"), policy(), limit=limit) == BODY[:limit]


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
    assert fetch_url(site.url("/endless"), policy(), limit=100_000) == b"\0" * 100_000
    assert stopped.wait(5)  # by closing the connection, not by reading on
    assert sent < 50_000_000


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "identity, gzip", "x-gzip", "br", "deflate"])
def test_compressed_content_is_not_expanded(site: Site, encoding: str) -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    site.serves("/bomb", status(200, bomb, Content_Encoding=encoding))
    with pytest.raises(OSError, match="sends compressed content although none was asked for"):
        fetch_url(site.url("/bomb"), policy(), limit=LIMIT)
    assert site.headers[0]["Accept-Encoding"] == "identity"
    assert site.asked == {"/bomb": 1}


@pytest.mark.parametrize("encoding", ["identity", "", "aws-chunked", "binary"])
def test_other_content_encodings_are_bytes_as_they_are(site: Site, encoding: str) -> None:
    site.serves("/a", status(200, gzip.compress(b"image"), Content_Encoding=encoding))
    assert gzip.decompress(fetch_url(site.url("/a"), policy(), limit=LIMIT)) == b"image"


# --- failures -----------------------------------------------------------------------------------


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
def test_what_the_server_answers(
    site: Site, code: int, error: type[OSError], num_asked: int
) -> None:
    site.serves("/a", status(code, b"" if code in (204, 304) else b"sorry"))
    with pytest.raises(error, match=rf"^127\.0\.0\.1 answers {code}") as caught:
        fetch_url(site.url("/a"), policy(), limit=LIMIT)
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
    assert fetch_url(site.url("/a"), policy(read_seconds=0.5), limit=LIMIT) == b"image"
    assert site.asked == {"/a": 3}


def test_a_redirect_is_walked_again_from_its_start(site: Site) -> None:
    site.serves("/from", status(302, Location="/to"))
    site.serves("/to", in_turn(status(503), status(200, b"image")))
    assert fetch_url(site.url("/from"), policy(), limit=LIMIT) == b"image"
    assert site.asked == {"/from": 2, "/to": 2}


def test_a_server_that_asks_to_wait_is_given_the_time(site: Site) -> None:
    site.serves("/a", in_turn(status(429, Retry_After="1"), status(200, b"image")))
    start = time.monotonic()
    assert fetch_url(site.url("/a"), policy(), limit=LIMIT) == b"image"
    assert 1 <= time.monotonic() - start < 8


BACKOFF = fetch._backoff


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
    with pytest.raises(OSError, match="answers 503"):
        fetch_url(site.url("/a"), policy(), limit=LIMIT)
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
def test_how_long_a_server_may_ask_to_wait(header: str | None, seconds: float) -> None:
    assert fetch._retry_after(header) == seconds


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
    with pytest.raises(TimeoutError, match=r"^127\.0\.0\.1 does not answer in time$"):
        fetch_url(site.url("/slow"), policy(read_seconds=5, total_seconds=0.6), limit=LIMIT)
    assert 0.5 < time.monotonic() - start < 4


def test_a_slow_error_page_is_not_waited_for(site: Site) -> None:
    site.serves("/a", drip(b"HTTP/1.1 404 Not Found\r\nContent-Length: 100000\r\n\r\n"))
    start = time.monotonic()
    with pytest.raises(FileNotFoundError):
        fetch_url(site.url("/a"), policy(), limit=LIMIT)
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
            fetch_url(f"http://127.0.0.1:{deaf.getsockname()[1]}/", impatient, limit=LIMIT)


def test_a_refused_connection_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        asked = names(monkeypatch, ["127.0.0.1"])
        with pytest.raises(ConnectionRefusedError, match=f"refuses connections on port {port}"):
            fetch_url(f"http://images.test:{port}/", policy(), limit=LIMIT)
    assert asked == ["images.test"]


@pytest.mark.parametrize(
    ("code", "error", "num_asked"),
    [(socket.EAI_NONAME, OSError, 1), (socket.EAI_AGAIN, TimeoutError, 4)],
)
def test_a_name_without_an_address(
    monkeypatch: pytest.MonkeyPatch, code: int, error: type[OSError], num_asked: int
) -> None:
    asked = []

    def look_up(host: str, port: int, **_: Any) -> list[Answer]:
        asked.append(host)
        raise socket.gaierror(code, "no")

    monkeypatch.setattr(connections, "_look_up", look_up)
    with pytest.raises(error, match=r"^images\.test is not a name with an address$"):
        fetch_url("http://images.test/", policy(hosts=("*",)), limit=LIMIT)
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
            fetch_url(url, strict, limit=LIMIT)
        told = "".join(
            line
            for line in traceback.format_exception(caught.value)
            if not line.lstrip().startswith("File")
        )
        assert SECRET not in str(caught.value), url
        assert SECRET not in told, url
    assert SECRET not in caplog.text


# --- TLS ----------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of a test."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        certificate = self._sign(self.name, self.key.public_key(), [], 1, is_authority=True)
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self,
        name: x509.Name,
        key: Any,
        hosts: list[x509.GeneralName],
        days: int,
        is_authority: bool,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def context(self, *hosts: str, days: int = 1) -> ssl.SSLContext:
        """A server's side of TLS with a certificate for names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        general: list[x509.GeneralName] = []
        for host in hosts:
            try:
                general.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                general.append(x509.DNSName(host))
        certificate = self._sign(x509.Name([]), key.public_key(), general, days, is_authority=False)
        file = self.folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


@contextmanager
def tls_site(context: ssl.SSLContext) -> Iterator[Site]:
    site = Site()
    site.socket = context.wrap_socket(site.socket, server_side=True, do_handshake_on_connect=False)
    with running(site):
        site.serves("/a.jpg", b"image")
        yield site


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that this process trusts."""
    trusted = Authority(tmp_path, "trusted")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted.file))
    return trusted


def test_tls_asks_for_the_name_and_connects_to_the_judged_address(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = authority.context("images.test")
    indicated: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: indicated.append(name)
    asked = names(monkeypatch, ["127.0.0.1"])
    with tls_site(context) as site:
        url = site.url(host="Images.test.", scheme="https")
        assert [fetch_url(url, policy(), limit=LIMIT) for _ in range(3)] == [b"image"] * 3
        assert site.num_connections == 1
        assert site.headers[0]["Host"] == f"images.test:{site.port}"
    assert indicated == ["images.test"]
    assert asked == ["images.test"]


def test_tls_to_an_address(authority: Authority) -> None:
    with tls_site(authority.context("127.0.0.1")) as site:
        assert fetch_url(site.url(scheme="https"), policy(), limit=LIMIT) == b"image"


@pytest.mark.parametrize(
    ("hosts", "days", "fault"),
    [
        (("other.test",), 1, "Hostname mismatch"),
        (("127.0.0.1",), 1, "Hostname mismatch"),  # for the address, not for the name
        (("*.images.test",), 1, "Hostname mismatch"),
        (("images.test",), -1, "expired"),
    ],
)
def test_a_certificate_that_is_not_the_hosts_is_refused(
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    hosts: tuple[str, ...],
    days: int,
    fault: str,
) -> None:
    names(monkeypatch, ["127.0.0.1"])
    with tls_site(authority.context(*hosts, days=days)) as site:
        with pytest.raises(OSError, match=rf"^images\.test shows a certificate.*{fault}"):
            fetch_url(site.url(host="images.test", scheme="https"), policy(), limit=LIMIT)
        assert site.num_connections == 1
        assert not site.asked


def test_a_certificate_of_an_unknown_authority_is_refused(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    names(monkeypatch, ["127.0.0.1"])
    unknown = Authority(authority.folder, "unknown")
    with tls_site(unknown.context("images.test")) as site:
        with pytest.raises(OSError, match="shows a certificate that is not accepted"):
            fetch_url(site.url(host="images.test", scheme="https"), policy(), limit=LIMIT)
        assert not site.asked


def test_a_redirect_from_tls_is_judged_too(authority: Authority) -> None:
    with tls_site(authority.context("127.0.0.1")) as site, running(Site("127.0.0.2")) as secret:
        site.serves("/from", status(302, Location=secret.url(host="127.0.0.2")))
        only_one = policy(private_networks=("127.0.0.1/32",))
        with pytest.raises(InputError):
            fetch_url(site.url("/from", scheme="https"), only_one, limit=LIMIT)
        assert secret.num_connections == 0


def test_a_slow_tls_server_costs_no_more_than_the_time_of_the_fetch(authority: Authority) -> None:
    with tls_site(authority.context("127.0.0.1")) as site:
        site.serves("/slow", drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"))
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            fetch_url(
                site.url("/slow", scheme="https"),
                policy(read_seconds=5, total_seconds=0.6),
                limit=LIMIT,
            )
        assert time.monotonic() - start < 4


def test_plain_http_where_tls_is_expected(site: Site) -> None:
    with pytest.raises(OSError, match=r"^127\.0\.0\.1 cannot be read"):
        fetch_url(site.url(scheme="https"), policy(), limit=LIMIT)


# --- connections --------------------------------------------------------------------------------


def test_one_connection_serves_many_images_also_those_that_are_not_there(site: Site) -> None:
    site.serves("/busy", in_turn(status(503, b"busy"), status(200, b"image")))
    site.serves("/from", status(302, b"moved", Location="/a.jpg"))
    for _ in range(20):
        assert fetch_url(site.url(), policy(), limit=LIMIT) == b"image"
        assert fetch_url(site.url("/from"), policy(), limit=LIMIT) == b"image"
        assert fetch_url(site.url("/busy"), policy(), limit=LIMIT) == b"image"
        with pytest.raises(FileNotFoundError):
            fetch_url(site.url("/not-there"), policy(), limit=LIMIT)
    assert site.num_connections == 1


def test_connections_are_bounded_and_threads_wait_for_them(site: Site) -> None:
    num_threads = 3 * connections._NUM_CONNECTIONS
    gathered = threading.Barrier(connections._NUM_CONNECTIONS)

    def together(handler: Handler) -> None:
        gathered.wait(10)  # as many as there may be are here at once
        handler.answer(200, b"image")

    site.serves("/together", together)
    with ThreadPoolExecutor(num_threads) as threads:
        found = threads.map(
            lambda _: fetch_url(site.url("/together"), policy(), limit=LIMIT), range(num_threads)
        )
        assert list(found) == [b"image"] * num_threads
    assert site.max_open == connections._NUM_CONNECTIONS


def test_failures_give_their_connections_back(site: Site) -> None:
    site.serves("/long", status(200, BODY))
    site.serves("/broken", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", reset=True))
    site.serves("/garbage", raw(b"garbage\r\n\r\n"))
    site.serves("/out", status(302, Location="ftp://elsewhere.test/"))
    hasty = policy(total_seconds=0.01)
    for _ in range(2 * connections._NUM_CONNECTIONS):
        assert fetch_url(site.url("/long"), policy(), limit=10) == BODY[:10]
        for path in ("/garbage", "/out"):
            with pytest.raises((OSError, InputError)):
                fetch_url(site.url(path), policy(), limit=LIMIT)
        with suppress(OSError):
            fetch_url(site.url("/broken"), hasty, limit=LIMIT)
    assert fetch_url(site.url(), policy(), limit=LIMIT) == b"image"


def test_a_connection_that_the_server_has_closed_is_opened_again(site: Site) -> None:
    site.serves("/last", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"))
    for _ in range(5):
        assert fetch_url(site.url("/last"), policy(), limit=LIMIT) == b"image"
    assert site.num_connections == 5


def test_a_forked_process_has_connections_of_its_own(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_url(site.url(), policy(), limit=LIMIT)
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    fetch_url(site.url(), policy(), limit=LIMIT)
    assert site.num_connections == 2


# --- whatever they send -------------------------------------------------------------------------

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


def names_are_all(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Simulate the worst DNS: every name is one address, and nothing public is there."""

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        kind, numeric = socket.SOCK_STREAM, socket.AI_NUMERICHOST
        try:
            found = socket.getaddrinfo(host, port, type=kind, flags=numeric)
        except (OSError, UnicodeError):
            found = socket.getaddrinfo(address, port, type=kind, flags=numeric)
        for *_kind, place in found:
            if UrlPolicy(hosts=("*",)).allows_address(ipaddress.ip_address(place[0])):
                raise socket.gaierror(socket.EAI_NONAME, "this test has no internet")
        return found

    monkeypatch.setattr(connections, "_look_up", look_up)


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
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    authority: str,
    tail: str,
) -> None:
    names_are_all(monkeypatch, "127.0.0.1")
    url = f"{scheme}{authority}:{everywhere[0].port}{tail}"
    with suppress(InputError, OSError):
        fetch_url(url, policy(private_networks=()), limit=LIMIT)
        pytest.fail(f"{url!r} was fetched")
    assert [site.num_connections for site in everywhere] == [0] * len(everywhere), url


@pytest.fixture(scope="module")
def open_and_secret() -> Iterator[tuple[Site, Site]]:
    """An allowed server that redirects to what it is told, and one beside it that is forbidden."""
    with running(Site("127.0.0.1")) as opened, running(Site("127.0.0.2", opened.port)) as secret:
        yield opened, secret


@fuzz
@given(scheme=schemes, authority=pieces)
@example(scheme="http://", authority="127.0.0.2")
@example(scheme="//", authority="127.0.0.2")
def test_no_redirect_connects_to_an_address_that_is_not_allowed(
    open_and_secret: tuple[Site, Site],
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    authority: str,
) -> None:
    names_are_all(monkeypatch, "127.0.0.2")
    opened, secret = open_and_secret
    authority = authority.replace("127.0.0.1", "127.0.0.2").replace("127.1", "127.2")
    location = f"{scheme}{authority}:{opened.port}/".encode("utf-8", "surrogatepass")
    if b"\n" in location or b"\r" in location:
        location = b"/"
    opened.serves("/", raw(b"HTTP/1.1 302 F\r\nLocation: " + location + b"\r\n\r\n"))
    with suppress(InputError, OSError):
        fetch_url(opened.url("/"), policy(private_networks=("127.0.0.1/32",)), limit=LIMIT)
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
def test_whatever_a_server_sends_is_bytes_or_an_error(
    open_and_secret: tuple[Site, Site], content: bytes, limit: int
) -> None:
    site = open_and_secret[0]
    site.serves("/a", raw(content))
    with suppress(OSError, InputError):
        assert len(fetch_url(site.url("/a"), policy(total_seconds=0.02), limit=limit)) <= limit
