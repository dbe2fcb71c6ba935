"""Tracks the replicas that have joined the gateway, by one connection from each.

A replica connects, sends one line of JSON with the gateway's secret and its addresses, and keeps
the connection open. When it wants to end it sends `leave`, and gets a reply once no new request
goes to it. A replica that dies closes its connection, whatever the cause.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["Replica", "Replicas"]

log = logging.getLogger(__name__)

_MAX_LINE = 4096  # bytes
_SECONDS_TO_JOIN = 5.0
_SOCKET = "unix@"  # prefix of a path in HAProxy's notation of addresses
_MAX_STALE_PATHS = 100  # of replicas that have ended


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica that can take requests.

    Attributes:
        name: Name of the replica in HAProxy's configuration.
        pid: Id of its process on its node.
        http: Address for HTTP, in HAProxy's notation.
        grpc: Address for gRPC, in HAProxy's notation.
    """

    name: str
    pid: int
    http: str
    grpc: str


class _SocketLinks:
    """Links to the replicas' sockets, redirected to another replica when theirs has ended.

    A HAProxy process that was replaced keeps callers' idle connections for up to a minute, and only
    knows the replicas of its own time; requests on those connections must succeed too. Replicas on
    other machines have no paths, and are reached by their own addresses.

    Args:
        folder: Folder of the links.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._targets: dict[str, str] = {}  # names of the replicas that links point to

    def linked(self, replica: Replica) -> Replica:
        """Return a replica with the links as its addresses."""
        return replace(
            replica,
            http=self._stable(replica.name, "http", replica.http),
            grpc=self._stable(replica.name, "grpc", replica.grpc),
        )

    def update(self, present: Mapping[str, Replica]) -> None:
        """Point every link to its replica, or to the newest if that one has ended."""
        if not present:
            return
        newest = list(present.values())[-1]
        for name in list(dict.fromkeys([*self._targets, *present])):
            target = present.get(name, newest)
            if self._targets.get(name) != target.name:
                self._point(name, "http", target.http)
                self._point(name, "grpc", target.grpc)
                self._targets[name] = target.name
        gone = [name for name in self._targets if name not in present]
        for name in gone[:-_MAX_STALE_PATHS]:
            del self._targets[name]
            for protocol in ("http", "grpc"):
                self._path(name, protocol).unlink(missing_ok=True)

    def _path(self, name: str, protocol: str) -> Path:
        return self._folder / f"{name}.{protocol}"

    def _stable(self, name: str, protocol: str, address: str) -> str:
        is_path = address.startswith(_SOCKET)
        return f"{_SOCKET}{self._path(name, protocol)}" if is_path else address

    def _point(self, name: str, protocol: str, address: str) -> None:
        if address.startswith(_SOCKET):
            path = self._path(name, protocol)
            made = path.with_name(f"{path.name}.new")
            made.symlink_to(address.removeprefix(_SOCKET))
            made.replace(path)


class Replicas:
    """The replicas that have joined.

    Args:
        folder: Folder for links to the sockets of replicas on this machine.
        secret: Secret that a replica must send.
        on_change: Awaited after each change; returns once HAProxy uses the new replicas.
        on_loss: Called with a replica that ended without leaving.
    """

    def __init__(
        self,
        folder: Path,
        secret: str,
        on_change: Callable[[], Awaitable[None]],
        on_loss: Callable[[Replica], None],
    ) -> None:
        self._secret, self._on_change, self._on_loss = secret, on_change, on_loss
        self._links = _SocketLinks(folder)
        self._present: dict[str, Replica] = {}  # with their own addresses
        self._numbers = itertools.count(1)
        self.joined = asyncio.Event()

    @property
    def present(self) -> list[Replica]:
        """The replicas that can take requests, oldest first."""
        return [self._links.linked(replica) for replica in self._present.values()]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle the connection of one replica until it ends."""
        try:
            async with asyncio.timeout(_SECONDS_TO_JOIN):
                replica = self._parse(await reader.readline())
            if replica is not None:
                await self._serve_until_end(replica, reader, writer)
        except (OSError, TimeoutError, ValueError, TypeError, KeyError) as error:
            log.warning("the connection of a replica ended: %s", error)
        except asyncio.CancelledError:
            pass  # the gateway ends
        finally:
            writer.close()

    async def _serve_until_end(
        self, replica: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Route requests to a replica until it leaves or its connection ends."""
        self._present[replica.name] = replica
        self._links.update(self._present)
        await self._on_change()
        self.joined.set()
        writer.write(b"joined\n")
        try:
            leaves = await reader.readline() == b"leave\n"
        except OSError:
            leaves = False
        if not leaves:
            self._on_loss(replica)
        del self._present[replica.name]
        self._links.update(self._present)
        await self._on_change()
        writer.write(b"left\n")

    def _parse(self, line: bytes) -> Replica | None:
        """Parse the line of a replica; None if it does not have the secret."""
        if not line or len(line) > _MAX_LINE:
            return None
        given = json.loads(line)
        if not hmac.compare_digest(str(given["secret"]).encode(), self._secret.encode()):
            log.warning("a replica was refused: it does not have the gateway's secret")
            return None
        name = f"replica{next(self._numbers)}"
        return Replica(name, int(given["pid"]), str(given["http"]), str(given["grpc"]))
