"""The replica's side of the gateway: joins, leaves, and accepts only the gateway's requests."""

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

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.serve.http.normalize import Message, Receive, Scope, Send

__all__ = [
    "CALLER",
    "SECRET",
    "GatewayAddress",
    "Membership",
    "RequireGateway",
    "is_from_gateway",
    "require_gateway_secret",
]

log = logging.getLogger(__name__)

SECRET = "x-eagleray-gateway"  # noqa: S105 — the name of a header
"""The header, or metadata of a gRPC call, with the gateway's secret."""

CALLER = "x-eagleray-caller"
"""The header in which the gateway sends the caller's address."""

_PAUSE = 0.3  # seconds between two tries to reach the gateway
_SECONDS_TO_LEAVE = 10.0


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """What a replica needs to join the gateway.

    Attributes:
        join: Address to join at: the path of a socket, or HOST:PORT of another machine.
        folder: Folder for the replica's own sockets; None if it may be on another machine.
        secret: Secret that the gateway and its replicas share.
    """

    join: str
    folder: str | None
    secret: str

    def as_fields(self) -> dict[str, Any]:
        """Return the fields as plain JSON."""
        return asdict(self)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the gateway.

        Raises:
            OSError: If the gateway cannot be reached.
        """
        if self.folder is not None:
            return await asyncio.open_unix_connection(self.join)
        host, _, port = self.join.rpartition(":")
        return await asyncio.open_connection(host, int(port))


def require_gateway_secret(settings: Settings) -> str:
    """Return the secret that the gateway and its replicas share.

    Raises:
        InputError: If it is not set.
    """
    if settings.gateway_secret is None:
        raise InputError(
            "EAGLERAY_GATEWAY_SECRET is not set; give the gateway and the nodes of the cluster the "
            "same random value, such as that of `openssl rand -hex 32`."
        )
    return settings.gateway_secret


class Membership:
    """A replica's membership of the gateway, renewed whenever the connection is lost.

    Args:
        gateway: Address of the gateway.
        http: Address of the replica for HTTP.
        grpc: Address of the replica for gRPC.

    Attributes:
        joined: Whether the gateway routes requests to the replica.
    """

    def __init__(self, gateway: GatewayAddress, *, http: str, grpc: str) -> None:
        fields = {"pid": os.getpid(), "http": http, "grpc": grpc}
        self._line = json.dumps({**fields, "secret": gateway.secret}).encode() + b"\n"
        self._gateway = gateway
        self._leaving = asyncio.Event()
        self.joined = False
        self._task: asyncio.Task[None] | None = None

    def join(self) -> None:
        """Join, and stay a member until `leave`."""
        self._task = asyncio.create_task(self._stay())

    async def leave(self) -> None:
        """Leave; returns once no new request goes to the replica."""
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
                log.warning("the connection to the gateway broke: %s", error)
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


class RequireGateway:
    """ASGI middleware that accepts only requests from the gateway.

    Args:
        app: The application; the scope of its requests has the caller's address as the client.
        secret: Secret of the gateway.
    """

    def __init__(self, app: Any, secret: str) -> None:
        self._app, self._secret = app, secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["type"] != "http" or not self._is_secret(headers.get(SECRET.encode(), b"")):
            await _refuse(send)
            return
        caller = headers.get(CALLER.encode(), b"").decode("latin-1")
        ours = (SECRET.encode(), CALLER.encode())
        kept = [(name, value) for name, value in scope["headers"] if name not in ours]
        scope = {**scope, "client": (caller, 0), "headers": kept}
        await _run_until_disconnect(self._app, scope, receive, send)

    def _is_secret(self, given: bytes) -> bool:
        return hmac.compare_digest(given, self._secret)


async def _run_until_disconnect(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the application for a request, and cancel it if the caller disconnects."""
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

    running = asyncio.create_task(app(scope, receive_noting, send))
    watching = asyncio.create_task(watch())
    try:
        await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        running.cancel()  # does nothing if it has ended
        watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def is_from_gateway(metadata: Mapping[str, str], secret: str) -> bool:
    """Whether a call of gRPC came through the gateway."""
    return hmac.compare_digest(str(metadata.get(SECRET, "")).encode(), secret.encode())


async def _refuse(send: Send) -> None:
    """Refuse a request that did not come through the gateway."""
    body = b"This is not the service's address.\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
