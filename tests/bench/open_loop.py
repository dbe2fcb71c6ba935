"""A client that sends requests on a fixed schedule, regardless of the responses.

Requests are sent when they are due, not when earlier ones are complete, each on a connection of its
own while it waits. It speaks just enough HTTP/1.1 to cost little beside the service: a
general client takes as long for a request as the service does to refuse it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

__all__ = ["SentRequest", "raise_priority", "send_at_rate", "send_in_turn"]

_TIMEOUT_SECONDS = 30.0
_SEND_BUFFER = 2**20
_PRIORITY = -10


@dataclass(frozen=True, slots=True)
class SentRequest:
    """One request.

    Attributes:
        due: Scheduled second.
        late: Seconds between then and its sending: the client's own delay.
        seconds: Seconds from sending to the complete response.
        status: HTTP status; 0 if the connection ended or timed out.
    """

    due: float
    late: float
    seconds: float
    status: int


def raise_priority() -> None:
    """Raise the priority of this process if allowed, as it stands for other machines."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)


async def send_at_rate(
    url: str, bodies: Sequence[bytes], *, rate: float, seconds: float
) -> list[SentRequest]:
    """Send requests at a fixed rate, and return them with their results, in order.

    Args:
        url: SentRequest by POST.
        bodies: Request bodies, used in turn.
        rate: Number of requests a second.
        seconds: Duration of sending.
    """
    client = _Client(url, bodies)
    began = time.monotonic()
    sending = []
    for number in range(int(rate * seconds)):
        due = number / rate
        await asyncio.sleep(max(0.0, began + due - time.monotonic()))
        sending.append(asyncio.create_task(client.send(number, due, began)))
    return list(await asyncio.gather(*sending))


async def send_in_turn(
    url: str, bodies: Sequence[bytes], *, connections: int, seconds: float
) -> list[SentRequest]:
    """Let each of some connections send its next request after the response to its last one."""
    client = _Client(url, bodies)
    began = time.monotonic()

    async def send_on(place: int) -> list[SentRequest]:
        sent: list[SentRequest] = []
        while (now := time.monotonic() - began) < seconds:
            sent.append(await client.send(place + connections * len(sent), now, began))
        return sent

    by_connection = await asyncio.gather(*(send_on(place) for place in range(connections)))
    return sorted((item for sent in by_connection for item in sent), key=lambda item: item.due)


class _Client:
    """Connections that are kept for the next request."""

    def __init__(self, url: str, bodies: Sequence[bytes]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        head += "content-type: application/octet-stream\r\ncontent-length: "
        self._requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
        self._idle: list[_Connection] = []

    async def send(self, number: int, due: float, began: float) -> SentRequest:
        sent = time.monotonic()
        status = 0
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                status = await self._exchange(self._requests[number % len(self._requests)])
        return SentRequest(due, sent - began - due, time.monotonic() - sent, status)

    async def _exchange(self, request: bytes) -> int:
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        try:
            head = await connection.exchange(request)
        except BaseException:
            connection.close()
            raise
        if b"connection: close" in head:
            connection.close()
        else:
            self._idle.append(connection)
        return int(head.split(None, 2)[1])


class _Connection(asyncio.Protocol):
    """Sends a request and returns the head of the response when it is complete."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._response: asyncio.Future[bytes] | None = None
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        # A photograph goes to the kernel at once, and not in pieces as the service takes them.
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    async def exchange(self, request: bytes) -> bytes:
        assert self._transport is not None
        self._response, self._got = asyncio.get_running_loop().create_future(), b""
        if self._transport.is_closing():
            raise ConnectionResetError
        self._transport.write(request)
        return await self._response

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        if not end:
            return
        head = head.lower()
        length = int(head.partition(b"content-length:")[2].split(None, 1)[0])
        if len(body) >= length and self._response is not None and not self._response.done():
            self._response.set_result(head)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._response is not None and not self._response.done():
            self._response.set_exception(exc or ConnectionResetError())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
