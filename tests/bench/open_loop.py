"""A client that keeps to its timetable, however long answers take.

Requests are sent when they are due, not when earlier ones are answered, each on a connection of its
own while it waits. It speaks just enough HTTP/1.1 to cost little beside the service it asks: a
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

__all__ = ["Asked", "ask_at_rate", "ask_in_turn", "in_front"]

_PATIENCE = 30.0
_SEND_BUFFER = 2**20
_FAVOURED = -10


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    Attributes:
        due: Second on the timetable.
        late: Seconds between then and its sending: the client's own delay.
        seconds: From its sending to the whole answer.
        status: Of HTTP; 0 where the connection ended or nothing came in time.
    """

    due: float
    late: float
    seconds: float
    status: int


def in_front() -> None:
    """Let this process go first where it may: it stands for other machines than the service's."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _FAVOURED)


async def ask_at_rate(
    url: str, bodies: Sequence[bytes], *, rate: float, seconds: float
) -> list[Asked]:
    """Send requests at a fixed rate, and return what came of each, in the order of their sending.

    Args:
        url: Asked by POST.
        bodies: Taken in turn.
        rate: Requests a second.
        seconds: That requests are sent for.
    """
    client = _Client(url, bodies)
    began = time.monotonic()
    asking = []
    for number in range(int(rate * seconds)):
        due = number / rate
        await asyncio.sleep(max(0.0, began + due - time.monotonic()))
        asking.append(asyncio.create_task(client.ask(number, due, began)))
    return list(await asyncio.gather(*asking))


async def ask_in_turn(
    url: str, bodies: Sequence[bytes], *, connections: int, seconds: float
) -> list[Asked]:
    """Let each of some connections send its next request when its last one is answered."""
    client = _Client(url, bodies)
    began = time.monotonic()

    async def ask_on(place: int) -> list[Asked]:
        asked: list[Asked] = []
        while (now := time.monotonic() - began) < seconds:
            asked.append(await client.ask(place + connections * len(asked), now, began))
        return asked

    told = await asyncio.gather(*(ask_on(place) for place in range(connections)))
    return sorted((item for part in told for item in part), key=lambda item: item.due)


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

    async def ask(self, number: int, due: float, began: float) -> Asked:
        sent = time.monotonic()
        status = 0
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                status = await self._exchange(self._requests[number % len(self._requests)])
        return Asked(due, sent - began - due, time.monotonic() - sent, status)

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
    """Sends a request and hands over the head of its answer, when all of the answer is there."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        # A photograph goes to the kernel at once, and not in pieces as the service takes them.
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    async def exchange(self, request: bytes) -> bytes:
        assert self._transport is not None
        self._answer, self._got = asyncio.get_running_loop().create_future(), b""
        if self._transport.is_closing():
            raise ConnectionResetError
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        if not end:
            return
        head = head.lower()
        length = int(head.partition(b"content-length:")[2].split(None, 1)[0])
        if len(body) >= length and self._answer is not None and not self._answer.done():
            self._answer.set_result(head)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
