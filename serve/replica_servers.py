"""The HTTP and gRPC servers of a replica, which accept requests from the gateway only.

HTTP is served by uvicorn, with the application of `serve/http/`. A gRPC call is handled as a stream
of one message, so that the message is read only after the caller's key is accepted, and only as
many large ones at a time as there is memory for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import ray
import uvicorn
from fastapi import FastAPI
from google.protobuf.message import DecodeError

from eagleray.core.errors import EaglerayError, InputError
from eagleray.serve.gateway.join import (
    CALLER,
    GatewayAddress,
    Membership,
    RequireGateway,
    is_from_gateway,
)
from eagleray.serve.grpc import GrpcInterface
from eagleray.serve.messages import METHODS, SERVICE, message
from eagleray.serving.problems import SlowError
from eagleray.serving.service import ImageService

__all__ = ["ReplicaServers"]

_SECONDS_TO_FINISH = 15
_ENVELOPE_BYTES = 1_000_000  # of a message in addition to its images
_KEEP_ALIVE = 90  # seconds; the gateway closes idle connections before


class ReplicaServers:
    """Serves HTTP and gRPC while the replica runs.

    Args:
        app: The HTTP application, which starts and stops the service.
        service: The service.
        gateway: Address of the gateway.
        replica: Name of this replica in Ray Serve.
        seconds_to_finish: Whole seconds for admitted requests to finish when the replica stops.
    """

    def __init__(
        self,
        app: FastAPI,
        service: ImageService,
        gateway: GatewayAddress,
        replica: str,
        *,
        seconds_to_finish: int = _SECONDS_TO_FINISH,
    ) -> None:
        self._seconds_to_finish = seconds_to_finish
        self._app, self._service, self._gateway = app, service, gateway
        self._replica = replica
        self._running = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Load the models, listen, and join the gateway.

        Raises:
            EaglerayError: If the service does not start.
        """
        await self._running.enter_async_context(self._app.router.lifespan_context(self._app))
        # Both stop at the same time; one after the other would exceed the time of a replica.
        servers = contextlib.AsyncExitStack(), contextlib.AsyncExitStack()
        self._running.push_async_callback(_close_together, *servers)
        listener, at_http = self._listen()
        app = RequireGateway(self._app, self._gateway.secret)
        await servers[0].enter_async_context(_running_http(app, listener, self._seconds_to_finish))
        at_grpc = await servers[1].enter_async_context(self._running_grpc())
        membership = Membership(self._gateway, http=at_http, grpc=at_grpc)
        membership.join()
        self._running.push_async_callback(membership.leave)

    async def stop(self) -> None:
        """Leave the gateway, finish admitted requests, and stop."""
        await self._running.aclose()

    def _listen(self) -> tuple[socket.socket, str]:
        """Listen for HTTP; return the socket and its address in HAProxy's notation."""
        if self._gateway.folder is not None:
            path = self._path("http")
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            return listener, f"unix@{path}"
        listener = socket.socket()
        listener.bind((ray.util.get_node_ip_address(), 0))
        host, port = listener.getsockname()
        return listener, f"{host}:{port}"

    def _path(self, protocol: str) -> Path:
        assert self._gateway.folder is not None
        # The path of a socket must be short; the end of the replica's name is unique.
        return Path(self._gateway.folder) / f"{self._replica[-8:]}.{protocol}.sock"

    @contextlib.asynccontextmanager
    async def _running_grpc(self) -> AsyncIterator[str]:
        calls = _Calls(self._service, self._gateway.secret)
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", calls.max_message_bytes),
                ("grpc.so_reuseport", 0),
            ]
        )
        server.add_generic_rpc_handlers((calls.handlers(),))
        if self._gateway.folder is not None:
            address = f"unix@{self._path('grpc')}"
            server.add_insecure_port(f"unix:{self._path('grpc')}")
        else:
            host = ray.util.get_node_ip_address()
            address = f"{host}:{server.add_insecure_port(f'{host}:0')}"
        await server.start()
        try:
            yield address
        finally:
            await server.stop(self._seconds_to_finish)


async def _close_together(*stacks: contextlib.AsyncExitStack) -> None:
    await asyncio.gather(*(stack.aclose() for stack in stacks))


class _Server(uvicorn.Server):
    """A server in a process that handles signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def _running_http(
    app: Any, listener: socket.socket, seconds_to_finish: int
) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=seconds_to_finish,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        await serving


class _Calls:
    """The gRPC handlers of the protocol's methods.

    Args:
        service: The service.
        secret: Secret of the gateway.
    """

    def __init__(self, service: ImageService, secret: str) -> None:
        self._interface, self._secret, self._service = GrpcInterface(service), secret, service
        self.max_message_bytes = service.config.max_body_bytes + _ENVELOPE_BYTES
        # The size of a message is unknown until it is read, so each counts as the largest.
        limit = max(1, service.config.max_in_flight_bytes // service.config.max_body_bytes // 2)
        self._reading: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(limit)
        )

    def handlers(self) -> Any:
        """Return the handlers of all methods."""
        methods = {
            method: grpc.stream_unary_rpc_method_handler(
                self._handler(method),
                request_deserializer=None,
                response_serializer=message(f"{method}Response").SerializeToString,
            )
            for method in METHODS
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _handler(self, method: str) -> Callable[[Any, Any], Awaitable[Any]]:
        request_type = message(f"{method}Request")

        async def handle(_: Any, context: Any) -> Any:
            metadata = {key.lower(): value for key, value in context.invocation_metadata()}
            if not is_from_gateway(metadata, self._secret):
                await context.abort(
                    grpc.StatusCode.PERMISSION_DENIED, "This is not the service's address."
                )
            with contextlib.ExitStack() as held:

                async def read(application: str) -> Any:
                    data = await self._read(application, context)
                    held.enter_context(self._service.byte_limiter.hold(application))(len(data))
                    return _parse(request_type, data)

                try:
                    return await self._interface.call(method, read, context, metadata.get(CALLER))
                except EaglerayError:
                    await context.abort(context.code(), context.details())

        return handle

    async def _read(self, application: str, context: Any) -> bytes:
        """Read the message of a call, as one of a few at a time.

        Raises:
            SlowError: If it does not arrive in time.
        """
        seconds = self._service.config.timeout_s
        try:
            async with asyncio.timeout(seconds), self._reading[application]:
                data = await context.read()
        except TimeoutError:
            raise SlowError(
                f"The message did not arrive within {seconds:g} s; send it faster, or send less."
            ) from None
        return b"" if data is grpc.aio.EOF else bytes(data)


def _parse(kind: Any, data: bytes) -> Any:
    """Parse a message.

    Raises:
        InputError: If it is not a message of this kind.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InputError("The message is not a request of this method.") from None
