"""A caller of HTTP/2 without TLS that holds requests open, which clients of the usual kind do not.

Frames are RFC 9113's, and headers RFC 7541's; those of answers are read as long as the server
writes them plainly, without Huffman's code and a table of its own, as HAProxy does.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Http2Caller"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY = 0, 1, 4, 6, 7
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_STATUSES = dict(zip(range(8, 15), (200, 204, 206, 304, 400, 404, 500), strict=True))
_NAMES = (  # noqa: SIM905 — sixty lines otherwise
    ":authority :method :method :path :path :scheme :scheme :status :status :status :status "
    ":status :status :status accept-charset accept-encoding accept-language accept-ranges accept "
    "access-control-allow-origin age allow authorization cache-control content-disposition "
    "content-encoding content-language content-length content-location content-range "
    "content-type cookie date etag expect expires from host if-match if-modified-since "
    "if-none-match if-range if-unmodified-since last-modified link location max-forwards "
    "proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie "
    "strict-transport-security transfer-encoding user-agent vary via www-authenticate"
).split()
"""The names of the table that both sides know, from 1."""


@dataclass
class Http2Caller:
    """A connection, as a context; it is made at once.

    Attributes:
        port: Of the server.
        host: Its address.
        source: Address that it comes from; empty for any.
        connection: Its socket.
    """

    port: int
    host: str = "127.0.0.1"
    source: str = ""
    connection: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self.connection = socket.socket(family)
        self.connection.settimeout(10)
        if self.source:
            self.connection.bind((self.source, 0))
        self.connection.connect((self.host, self.port))
        self.connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b""))
        self._streams = itertools.count(1, 2)

    def __enter__(self) -> Http2Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def begin(self, method: str, path: str, *, ends: bool = False, **headers: str) -> int:
        """Send the head of a request; return the number of its stream.

        Args:
            method: Of the request.
            path: Of the request.
            ends: Whether it has no body; else the body stays away.
            headers: Of the request; an underscore in a name stands for a dash.
        """
        stream = next(self._streams)
        named = {":method": method, ":scheme": "http", ":path": path, ":authority": "127.0.0.1"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in named.items())
        flags = _END_HEADERS | (_END_STREAM if ends else 0)
        self.connection.sendall(_frame(_HEADERS, flags, stream, block))
        return stream

    def send(self, stream: int, data: bytes) -> None:
        """Send the body of a request, and end it."""
        self.connection.sendall(_frame(_DATA, _END_STREAM, stream, data))

    def answers(self, number: int) -> list[dict[str, str]]:
        """Wait for so many answers, of whichever requests; return their headers.

        Raises:
            OSError: The server closes the connection, says that it ends, or sends nothing.
        """
        found: list[dict[str, str]] = []
        while len(found) < number:
            kind, flags, payload = self._read()
            if kind == _HEADERS:
                found.append(dict(_headers(payload)))
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                kept = payload if kind == _PING else b""
                self.connection.sendall(_frame(kind, _ACK, 0, kept))
            elif kind == _GOAWAY:
                raise ConnectionError(f"The server ends the connection: {payload!r}")
        return found

    def _read(self) -> tuple[int, int, bytes]:
        head = self._exactly(9)
        return head[3], head[4], self._exactly(int.from_bytes(head[:3]))

    def _exactly(self, number: int) -> bytes:
        found = b""
        while len(found) < number:
            more = self.connection.recv(number - len(found))
            if not more:
                raise ConnectionError("The server closed the connection.")
            found += more
        return found


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _text(text: str) -> bytes:
    encoded = text.encode()
    assert len(encoded) < 127
    return bytes([len(encoded)]) + encoded


def _headers(block: bytes) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:
            index, at = _number(block, at, 7)
            yield _NAMES[index - 1], str(_STATUSES.get(index, ""))
            continue
        if first & 0xE0 == 0x20:  # the size of a table that nobody uses
            _, at = _number(block, at, 5)
            continue
        index, at = _number(block, at, 6 if first & 0x40 else 4)
        if index:
            name = _NAMES[index - 1]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        yield name, value


def _string(block: bytes, at: int) -> tuple[str, int]:
    coded = block[at] & 0x80
    length, at = _number(block, at, 7)
    text = "(in Huffman's code)" if coded else block[at : at + length].decode("latin-1")
    return text, at + length


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    shift = 0
    while value >= most and (shift == 0 or block[at - 1] & 0x80):
        value += (block[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value, at
