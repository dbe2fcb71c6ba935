"""The servers of a replica, as they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from eagleray.serve.gateway.join import CALLER, SECRET, GatewayAddress
from eagleray.serve.gateway.sockets import private_folder
from eagleray.serve.http import build_http
from eagleray.serve.replica_servers import ReplicaServers
from eagleray.serving.config import ServiceConfig
from eagleray.serving.service import ImageService
from tests.support.serving import RecordingLauncher, registry_with

NAME = "replica1"


def test_hanging_http_and_grpc_requests_are_waited_for_at_the_same_time(tmp_path: Path) -> None:
    """Ray Serve kills a replica whose end takes longer than its grace."""

    async def test(folder: Path) -> None:
        config = ServiceConfig.model_validate({"engine": "eager"})
        service = ImageService(registry_with(tmp_path, "digits"), config, device="cpu", num_cores=1)
        app = build_http(service, RecordingLauncher())
        address = GatewayAddress(str(folder / "join.sock"), str(folder), "secret")
        servers = ReplicaServers(app, service, address, NAME, seconds_to_finish=2)
        await servers.start()
        _, writer = await asyncio.open_unix_connection(folder / f"{NAME}.http.sock")
        head = [
            "POST /v1/models/digits/predict HTTP/1.1",
            *("host: a", f"{SECRET}: secret", f"{CALLER}: 127.0.0.1", "content-length: 10"),
        ]
        writer.write(("\r\n".join(head) + "\r\n\r\n1").encode())  # and never the rest
        async with grpc.aio.insecure_channel(f"unix:{folder}/{NAME}.grpc.sock") as channel:
            infer = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
            call = infer(never(), metadata=((SECRET, "secret"), (CALLER, "127.0.0.1")))
            await call.wait_for_connection()
            await asyncio.sleep(0.3)  # both are under way
            began = time.monotonic()
            await servers.stop()
            assert 1.9 < time.monotonic() - began < 3.5
        writer.close()

    with private_folder() as folder:
        asyncio.run(test(folder))


async def never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""
