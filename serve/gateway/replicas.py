"""The replicas that have joined: a connection of each, which ends with its process.

A replica connects, sends one line of JSON with the gateway's secret and where it listens, and keeps
the connection. When it wants to end it sends `leave`, and is answered when no new request is put to
it. A replica that dies closes its connection, whatever it dies of.
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

_LONGEST_LINE = 4096
_SECONDS_TO_JOIN = 5.0
_SOCKET = "unix@"  # before a path, as HAProxy writes an address
_PATHS_KEPT = 100  # of replicas that have gone


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica that answers.

    Attributes:
        name: What HAProxy calls it.
        pid: Its process, on its node.
        http: Where it listens for HTTP, as HAProxy writes an address.
        grpc: Where it listens for gRPC.
    """

    name: str
    pid: int
    http: str
    grpc: str


class _Paths:
    """Paths of the replicas' sockets, which lead to another replica when theirs has gone.

    A process of HAProxy that was replaced keeps callers' idle connections for up to a minute, and
    knows no replicas but those of its own time: what it is asked then has to be answered too.
    Replicas on other machines have no paths, and are called by their own addresses.

    Args:
        folder: Folder of the paths.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leads: dict[str, str] = {}  # from the name of each replica to the one that is there

    def of(self, replica: Replica) -> Replica:
        """Return a replica with paths that stay good as its addresses."""
        return replace(
            replica,
            http=self._stable(replica.name, "http", replica.http),
            grpc=self._stable(replica.name, "grpc", replica.grpc),
        )

    def update(self, present: Mapping[str, Replica]) -> None:
        """Lead every path to its replica, or to the newest where that one has gone."""
        if not present:
            return
        newest = list(present.values())[-1]
        for name in list(dict.fromkeys([*self._leads, *present])):
            target = present.get(name, newest)
            if self._leads.get(name) != target.name:
                self._lead(name, "http", target.http)
                self._lead(name, "grpc", target.grpc)
                self._leads[name] = target.name
        gone = [name for name in self._leads if name not in present]
        for name in gone[:-_PATHS_KEPT]:
            del self._leads[name]
            for protocol in ("http", "grpc"):
                self._path(name, protocol).unlink(missing_ok=True)

    def _path(self, name: str, protocol: str) -> Path:
        return self._folder / f"{name}.{protocol}"

    def _stable(self, name: str, protocol: str, address: str) -> str:
        is_path = address.startswith(_SOCKET)
        return f"{_SOCKET}{self._path(name, protocol)}" if is_path else address

    def _lead(self, name: str, protocol: str, address: str) -> None:
        if address.startswith(_SOCKET):
            path = self._path(name, protocol)
            made = path.with_name(f"{path.name}.new")
            made.symlink_to(address.removeprefix(_SOCKET))
            made.replace(path)


class Replicas:
    """Takes replicas in and lets them go.

    Args:
        folder: Folder for paths to the replicas of this machine.
        secret: What a replica has to send.
        changed: Is awaited after each change, and returns when HAProxy uses it.
        lost: Is called with a replica that went without leaving.
    """

    def __init__(
        self,
        folder: Path,
        secret: str,
        changed: Callable[[], Awaitable[None]],
        lost: Callable[[Replica], None],
    ) -> None:
        self._secret, self._changed, self._lost = secret, changed, lost
        self._paths = _Paths(folder)
        self._present: dict[str, Replica] = {}  # with their own addresses
        self._numbers = itertools.count(1)
        self.joined = asyncio.Event()

    @property
    def present(self) -> list[Replica]:
        """Those that requests may be put to, oldest first."""
        return [self._paths.of(replica) for replica in self._present.values()]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle the connection of one replica, for as long as it lasts."""
        try:
            async with asyncio.timeout(_SECONDS_TO_JOIN):
                replica = self._read(await reader.readline())
            if replica is not None:
                await self._keep(replica, reader, writer)
        except (OSError, TimeoutError, ValueError, TypeError, KeyError) as error:
            log.warning("the connection of a replica ended: %s", error)
        except asyncio.CancelledError:
            pass  # the gateway ends
        finally:
            writer.close()

    async def _keep(
        self, replica: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Have requests put to a replica until it leaves, or its connection ends."""
        self._present[replica.name] = replica
        self._paths.update(self._present)
        await self._changed()
        self.joined.set()
        writer.write(b"joined\n")
        try:
            leaves = await reader.readline() == b"leave\n"
        except OSError:
            leaves = False
        if not leaves:
            self._lost(replica)
        del self._present[replica.name]
        self._paths.update(self._present)
        await self._changed()
        writer.write(b"left\n")

    def _read(self, line: bytes) -> Replica | None:
        """Read what a replica says of itself; None where it does not know the secret."""
        if not line or len(line) > _LONGEST_LINE:
            return None
        said = json.loads(line)
        if not hmac.compare_digest(str(said["secret"]).encode(), self._secret.encode()):
            log.warning("a replica was turned away: it does not know the gateway's secret")
            return None
        name = f"replica{next(self._numbers)}"
        return Replica(name, int(said["pid"]), str(said["http"]), str(said["grpc"]))
