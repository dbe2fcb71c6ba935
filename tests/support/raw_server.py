"""A server of bytes on loopback that says whatever a test has it say: it drips, lies and breaks."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["RawServer", "raw_server", "response"]

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)

Reply = Callable[["RawServer", socket.socket], None]


@dataclass
class RawServer:
    """A server that runs.

    Attributes:
        port: That it listens on.
        requests: Each request as it came, head and body.
        ended: Set when the test is over; replies that drip wait for it.
    """

    port: int
    requests: list[bytes] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Of its root."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def targets(self) -> list[str]:
        """The method and the path of each request."""
        return [request.partition(b" HTTP/")[0].decode() for request in self.requests]

    def drip(self, connection: socket.socket, content: bytes, *, every: float = 0.1) -> None:
        """Send a byte now and then, for as long as somebody reads."""
        for number in range(len(content)):
            connection.sendall(content[number : number + 1])
            if self.ended.wait(every):
                return


def response(
    body: bytes | str,
    *headers: str,
    status: str = "200 OK",
    kind: str | None = "application/json",
    length: int | None = None,
) -> bytes:
    """Return a response of HTTP."""
    content = body if isinstance(body, bytes) else body.encode()
    lines = [f"HTTP/1.1 {status}", *headers]
    lines.append(f"content-length: {len(content) if length is None else length}")
    lines += [] if kind is None else [f"content-type: {kind}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


@contextlib.contextmanager
def raw_server(*replies: bytes | Reply) -> Iterator[RawServer]:
    """Run a server that gives one reply after the other, and the last one from then on."""
    with socket.create_server(("127.0.0.1", 0)) as reporter:
        server = RawServer(reporter.getsockname()[1])

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                while request := _read_request(connection):
                    reply = replies[min(len(server.requests), len(replies) - 1)]
                    server.requests.append(request)
                    if isinstance(reply, bytes):
                        connection.sendall(reply)
                    else:
                        reply(server, connection)
                        return

        def listen() -> None:
            with contextlib.suppress(OSError):
                while not server.ended.is_set():
                    connection, _ = reporter.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            with contextlib.suppress(OSError):
                reporter.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def _read_request(connection: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request:
        more = connection.recv(65_536)
        if not more:
            return b""
        request += more
    found = _LENGTH.search(request)
    length = int(found[1]) if found else 0
    start = request.index(b"\r\n\r\n") + 4
    while len(request) < start + length:
        request += connection.recv(65_536)
    return request
