"""A replica's side of the gateway: join, leave, and tell its requests from those of others."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from eagleray.serve.http.plain import Message, Receive, Scope, Send

__all__ = ["CALLER", "SECRET", "FromGateway", "GatewayAddress", "Membership", "from_gateway"]

log = logging.getLogger(__name__)

SECRET = "x-eagleray-gateway"  # noqa: S105 — the name of a header
"""The header, or the metadata of a call, by which a replica knows the gateway."""

CALLER = "x-eagleray-caller"
"""The header in which the gateway tells a caller's address."""

_PAUSE = 0.3  # seconds between two tries to reach the gateway
_SECONDS_TO_LEAVE = 10.0


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """What a replica needs to join the gateway.

    Attributes:
        join: Where to join: the path of a socket, or HOST:PORT of another machine.
        folder: Folder for the replica's own sockets; None where it is on another machine.
        secret: What the two know each other by.
    """

    join: str
    folder: str | None
    secret: str

    def as_fields(self) -> dict[str, Any]:
        """Return what makes an equal value, as JSON can carry it."""
        return asdict(self)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to where replicas join.

        Raises:
            OSError: The gateway is not there.
        """
        if self.folder is not None:
            return await asyncio.open_unix_connection(self.join)
        host, _, port = self.join.rpartition(":")
        return await asyncio.open_connection(host, int(port))


class Membership:
    """A replica's place at the gateway, taken again whenever the connection is lost.

    Args:
        gateway: Where to join.
        http: Where it listens for HTTP.
        grpc: Where it listens for gRPC.

    Attributes:
        joined: Whether the gateway has put requests to it.
    """

    def __init__(self, gateway: GatewayAddress, *, http: str, grpc: str) -> None:
        said = {"pid": os.getpid(), "http": http, "grpc": grpc}
        self._line = json.dumps({**said, "secret": gateway.secret}).encode() + b"\n"
        self._gateway = gateway
        self._leaving = asyncio.Event()
        self.joined = False
        self._task: asyncio.Task[None] | None = None

    def join(self) -> None:
        """Join from now on."""
        self._task = asyncio.create_task(self._stay())

    async def leave(self) -> None:
        """Return when no new request is put to the replica."""
        self._leaving.set()
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._task, _SECONDS_TO_LEAVE)

    async def _stay(self) -> None:
        while not self._leaving.is_set():
            try:
                reader, writer = await self._gateway.connect()
            except OSError:
                await asyncio.sleep(_PAUSE)
                continue
            try:
                await self._talk(reader, writer)
            except OSError as error:
                log.warning("the gateway went away: %s", error)
            finally:
                writer.close()
            await asyncio.sleep(_PAUSE)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._line)
        if await reader.readline() != b"joined\n":
            return
        self.joined = True
        ended = asyncio.create_task(reader.readline())
        leaving = asyncio.create_task(self._leaving.wait())
        await asyncio.wait({ended, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if self._leaving.is_set():
            writer.write(b"leave\n")
        await ended
        self.joined = False


class FromGateway:
    """Lets only the gateway's requests through, and notes whose they are.

    Args:
        app: Behind it; the scope of a request has the caller's address as its client.
        secret: What the gateway is known by.
    """

    def __init__(self, app: Any, secret: str) -> None:
        self._app, self._secret = app, secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["type"] != "http" or not self._knows(headers.get(SECRET.encode(), b"")):
            await _turn_away(send)
            return
        caller = headers.get(CALLER.encode(), b"").decode("latin-1")
        ours = (SECRET.encode(), CALLER.encode())
        kept = [(name, value) for name, value in scope["headers"] if name not in ours]
        told = {**scope, "client": (caller, 0), "headers": kept}
        await _until_gone(self._app, told, receive, send)

    def _knows(self, given: bytes) -> bool:
        return hmac.compare_digest(given, self._secret)


async def _until_gone(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or cancel what answers it when its caller goes away."""
    complete, gone = asyncio.Event(), asyncio.Event()

    async def receive_noting() -> Message:
        if complete.is_set():
            await gone.wait()
            return {"type": "http.disconnect"}
        message = await receive()
        if not message.get("more_body", False):
            complete.set()
        return message

    async def watch() -> None:
        await complete.wait()
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    answering = asyncio.create_task(app(scope, receive_noting, send))
    watching = asyncio.create_task(watch())
    try:
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        answering.cancel()  # nothing, where it has ended
        watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await answering


def from_gateway(metadata: Mapping[str, str], secret: str) -> bool:
    """Whether a call of gRPC came through the gateway."""
    return hmac.compare_digest(str(metadata.get(SECRET, "")).encode(), secret.encode())


async def _turn_away(send: Send) -> None:
    """Say to whoever came around the gateway that this is no door."""
    body = b"This is not the service's address.\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
