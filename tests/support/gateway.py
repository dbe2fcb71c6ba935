"""A gateway that replicas of a test have joined: HAProxy as the command runs it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from eagleray.core.system import free_port
from eagleray.serve.gateway.gateway import Gateway, running_gateway
from eagleray.serve.gateway.haproxy import HAProxySettings, Limits
from eagleray.serve.gateway.join import GatewayAddress, Membership
from eagleray.serve.gateway.sockets import ListenAddress, open_sockets, private_folder

PREDICT = "/v1/models/m/predict"


LIMITS = Limits(max_connections_per_address=50, connections=500, head_s=1)


@dataclass
class Replica:
    """Takes on one prediction at once, and answers when it may.

    Attributes:
        heads: Headers of each request.
        requested: Is set by each request.
        may_answer: Whether it may answer.
        stalled: Whether it answers nothing at all, as a process that is stopped.
    """

    name: str = "one"
    heads: list[dict[str, str]] = field(default_factory=list)
    requested: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    stalled: bool = False
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    server: asyncio.Server | None = None

    async def response(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                lines = head.splitlines()
                headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
                await reader.readexactly(int(headers.get("content-length", 0)))
                if self.stalled:
                    await asyncio.Event().wait()
                if "/live " not in lines[0]:
                    self.heads.append(headers)
                    self.requested.set()
                    await self.may_answer.wait()
                body = self.name.encode()
                length = b"content-length: %d\r\n\r\n" % len(body)
                writer.write(b"HTTP/1.1 200 OK\r\nx-eagleray-capacity: 1\r\n" + length + body)
        writer.close()

    async def listen(self, path: str) -> None:
        self.server = await asyncio.start_unix_server(self.response, path)

    def die(self) -> None:
        """Break all connections and listen no more, as a process that is killed."""
        assert self.server is not None
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()


@dataclass
class Running:
    place: ListenAddress
    address: GatewayAddress
    client: httpx.AsyncClient
    reported: list[str]
    gateway: Gateway
    members: list[Membership] = field(default_factory=list)

    async def join(self, replica: Replica) -> None:
        """Have a replica listen, and join the gateway."""
        path = f"{self.address.folder}/{replica.name}.sock"
        await replica.listen(path)
        member = Membership(self.address, http=f"unix@{path}", grpc=f"unix@{path}")
        member.join()
        self.members.append(member)
        await until(lambda: member.joined)

    async def predict(self, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(PREDICT, content=b"0", headers=named)

    def haproxy(self) -> psutil.Process:
        """Return the newest HAProxy process."""
        found = [
            child for child in psutil.Process().children() if "haproxy" in " ".join(child.cmdline())
        ]
        return max(found, key=lambda child: child.create_time())

    async def wait_for_report(self, what: str) -> None:
        await until(lambda: any(what in sentence for sentence in self.reported))

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        caller = socket.socket()
        caller.settimeout(10)
        caller.bind((source, 0))
        with contextlib.suppress(ConnectionResetError):  # it may be one too many
            caller.connect(("127.0.0.1", self.place.port))
        return caller


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def gateway(
    tmp_path: Path, *replicas: Replica, on_fault: Callable[[str], None] | None = None
) -> AsyncIterator[Running]:
    """Run a gateway that these replicas have joined."""
    metrics = f"127.0.0.1:{free_port()}"
    place = ListenAddress("127.0.0.1", free_port(), free_port(), metrics)
    reported: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        sockets = stack.enter_context(open_sockets(place))
        log = tmp_path / "haproxy.log"
        settings = HAProxySettings(folder, sockets, LIMITS, log)
        starting = running_gateway(settings, on_fault=on_fault or reported.append)
        running, address = stack.enter_context(starting)
        async with httpx.AsyncClient(base_url=place.url, timeout=20) as client:
            made = Running(place, address, client, reported, running)
            await asyncio.gather(*(made.join(replica) for replica in replicas))
            yield made


def run(
    tmp_path: Path,
    test: Callable[..., Awaitable[None]],
    *names: str,
    on_fault: Callable[[str], None] | None = None,
) -> None:
    """Run a test with a gateway and replicas of these names."""

    async def go() -> None:
        replicas = [Replica(name) for name in names]
        async with gateway(tmp_path, *replicas, on_fault=on_fault) as running:
            await test(running, *replicas)

    asyncio.run(go())
