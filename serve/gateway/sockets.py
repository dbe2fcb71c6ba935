"""Opens the sockets on which the service listens for callers."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eagleray.core.environment import is_loopback_address
from eagleray.core.errors import InputError, UserError

__all__ = ["ListenAddress", "ListeningSockets", "open_sockets", "private_folder"]

_BACKLOG = 4096  # maximum number of connections that wait while HAProxy is replaced
_TEMPORARY = "/tmp"  # noqa: S108 — TMPDIR may be too long for the path of a socket


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where the service listens.

    Attributes:
        host: Name or address; 0.0.0.0 stands for every IPv4 address, :: for every address.
        port: Port of HTTP.
        grpc_port: Port of gRPC; 0 for none.
        metrics: Address and port of HAProxy's metrics, as `127.0.0.1:9101`; None for none.
    """

    host: str
    port: int
    grpc_port: int
    metrics: str | None = None

    @property
    def url(self) -> str:
        """The URL of the service on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ListeningSockets:
    """The sockets that callers connect to.

    Attributes:
        http: Socket for HTTP/1.1 and HTTP/2.
        grpc: Socket for gRPC; None for none.
        metrics: Socket for the scraper of HAProxy's metrics; None for none.
    """

    http: socket.socket
    grpc: socket.socket | None
    metrics: socket.socket | None = None

    @property
    def open(self) -> list[socket.socket]:
        """The sockets that there are."""
        return [one for one in (self.http, self.grpc, self.metrics) if one is not None]

    @property
    def are_loopback(self) -> bool:
        """Whether only this machine can connect to them."""
        return is_loopback_address(str(self.http.getsockname()[0]))


@contextlib.contextmanager
def open_sockets(address: ListenAddress) -> Iterator[ListeningSockets]:
    """Listen while the block runs.

    Raises:
        InputError: If the address is not one of this machine, or a port is in use.
    """
    with contextlib.ExitStack() as stack:
        http = stack.enter_context(_listen(address.host, address.port))
        grpc = (
            stack.enter_context(_listen(address.host, address.grpc_port))
            if address.grpc_port
            else None
        )
        metrics = None
        if address.metrics is not None:
            metrics = stack.enter_context(_listen(*_split(address.metrics)))
        yield ListeningSockets(http, grpc, metrics)


def _split(address: str) -> tuple[str, int]:
    """Return the host and the port of an address.

    Raises:
        InputError: If it does not have both.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(
            f"--metrics-address {address!r} is not an address with a port; write one such as "
            "127.0.0.1:9101 or [::1]:9101."
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"{host} is not an address of this machine ({_reason(error)}); give --host or "
            "--metrics-address one such as 127.0.0.1, 0.0.0.0 or ::1."
        ) from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            everywhere = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_unspecified
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not everywhere))
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"Port {port} of {host} cannot be used ({_reason(error)}); choose another --host, "
            "--port, --grpc-port or --metrics-address."
        ) from None
    return listener


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def private_folder(parent: str = _TEMPORARY) -> Iterator[Path]:
    """Create a temporary folder that only its owner can enter, for sockets.

    Its path is short, because the paths of sockets must be.

    Args:
        parent: Folder in which it is created.

    Raises:
        UserError: If the parent is not writable.
    """
    try:
        made = tempfile.TemporaryDirectory(
            prefix="eagleray-", dir=parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise UserError(
            f"The folder for the service's sockets cannot be created in {parent} "
            f"({error.strerror}); make {parent} writable."
        ) from None
    with made as name:
        yield Path(name)
