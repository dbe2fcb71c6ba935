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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

__all__ = ["Replica", "Replicas"]

log = logging.getLogger(__name__)

_LONGEST_LINE = 4096
_SECONDS_TO_JOIN = 5.0


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


class Replicas:
    """Takes replicas in and lets them go.

    Args:
        secret: What a replica has to send.
        changed: Is awaited after each change, and returns when HAProxy uses it.
        lost: Is called with a replica that went without leaving.
    """

    def __init__(
        self,
        secret: str,
        changed: Callable[[], Awaitable[None]],
        lost: Callable[[Replica], None],
    ) -> None:
        self._secret, self._changed, self._lost = secret, changed, lost
        self._present: dict[str, Replica] = {}
        self._numbers = itertools.count(1)
        self.joined = asyncio.Event()

    @property
    def present(self) -> list[Replica]:
        """Those that requests may be put to, oldest first."""
        return list(self._present.values())

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
