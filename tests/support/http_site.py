"""An HTTP server on loopback whose responses tests define, a fake DNS, and a policy for both."""

from __future__ import annotations

import http.server
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from tenacity import wait_none

from eagleray.io.http import UrlPolicy, fetch_url
from eagleray.io.http.connections import Resolver

LIMIT = 10_000_000
LOOPBACK = ("127.0.0.0/8", "::1/128")


def policy(**overrides: Any) -> UrlPolicy:
    """A policy for any host and port, with loopback and short time-outs."""
    values: dict[str, Any] = {
        "hosts": ("*:*",),
        "private_networks": LOOPBACK,
        "connect_seconds": 2,
        "read_seconds": 2,
        "total_seconds": 10,
    }
    return UrlPolicy(**(values | overrides))


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


@contextmanager
def on_one_port() -> Iterator[tuple[Site, Site]]:
    """Run a site on 127.0.0.1 and one on 127.0.0.2, with the same port."""
    with ExitStack() as stack:
        while True:
            first = Site("127.0.0.1")
            try:
                second = Site("127.0.0.2", first.port)
            except OSError:  # another process has the port there
                first.server_close()
                continue
            yield stack.enter_context(running(first)), stack.enter_context(running(second))
            return


class FakeDns:
    """Resolves names to given addresses: a list for each look-up, of which the last one stays.

    Attributes:
        asked: Names in the order in which they were looked up.
    """

    def __init__(self, *answers: list[str]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)
        self._resolve = socket.getaddrinfo  # before a test replaces it

    def __call__(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        self.asked.append(host)
        answers = self._answers
        found: list[Any] = []
        for text in answers.pop(0) if len(answers) > 1 else answers[0]:
            found += self._resolve(text, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return found


def fetch(
    url: str, allowed: UrlPolicy, resolver: Resolver | None = None, limit: int = LIMIT
) -> bytes:
    """Fetch a URL without waits between attempts."""
    return fetch_url(url, allowed, limit=limit, backoff=wait_none(), resolver=resolver)
