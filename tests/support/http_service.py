"""The service's HTTP application behind a real server, in a thread of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI

from eagleray.registry.registry import Registry
from eagleray.serve.http import build_http
from eagleray.serving.config import ServiceConfig
from eagleray.serving.service import ImageService
from tests.support.serving import RecordingLauncher

__all__ = ["Served", "http_service"]

_PATIENCE = 60.0


@dataclass(frozen=True)
class Served:
    """A service that listens on loopback."""

    app: FastAPI
    service: ImageService
    port: int
    launcher: RecordingLauncher = field(default_factory=RecordingLauncher)

    @property
    def url(self) -> str:
        """Of its root."""
        return f"http://127.0.0.1:{self.port}"

    def say(self, *parts: bytes, pause: float = 0.0) -> bytes:
        """Send bytes as they are, and return the answer's head."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)
            except OSError:  # it has answered and closed before it had all of it
                pass
            response = b""
            try:
                while b"\r\n\r\n" not in response and (more := connection.recv(65_536)):
                    response += more
            except ConnectionResetError:
                pass
        return response


@contextmanager
def http_service(
    registry: Registry, *, around: Callable[[Any], Any] = lambda app: app, **fields: Any
) -> Iterator[Served]:
    """Run a service.

    Args:
        registry: Its models.
        around: Wraps the application, for example to record its responses.
        fields: Of its configuration.
    """
    config = ServiceConfig(**{"engine": "eager", "poll_interval_s": 0.2, **fields})
    service = ImageService(registry, config, device="cpu", num_cores=2)
    launcher = RecordingLauncher()
    app = build_http(service, launcher)
    server = uvicorn.Server(
        uvicorn.Config(around(app), port=0, log_level="critical", lifespan="on")
    )
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        end = time.monotonic() + _PATIENCE
        while not server.started:
            assert thread.is_alive(), "the service does not start"
            assert time.monotonic() < end, "the service is not ready"
            time.sleep(0.01)
        yield Served(app, service, server.servers[0].sockets[0].getsockname()[1], launcher)
    finally:
        server.should_exit = True
        thread.join(_PATIENCE)
