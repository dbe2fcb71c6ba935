"""Opens connections that resolve a host once, check its addresses and keep to a deadline."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any, NamedTuple

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NameResolutionError, NewConnectionError
from urllib3.util import Timeout
from urllib3.util.ssl_ import create_urllib3_context

from eagleray.core.errors import InputError
from eagleray.io.http.policy import UrlPolicy
from eagleray.io.http.urls import Target

__all__ = [
    "FetchContext",
    "Resolver",
    "current_fetch",
    "fetch_context",
    "pool_for",
    "shorter_deadline",
]

_MAX_HOSTS = 64  # connection pools of a process for one policy
_MAX_CONNECTIONS = 16  # in each pool; threads wait for a free one

_pools_lock = threading.Lock()


Resolver = Callable[..., list[tuple[Any, ...]]]
"""A function with the arguments and the result of `socket.getaddrinfo`."""


class FetchContext(NamedTuple):
    """State of a fetch that urllib3 cannot pass on to its sockets.

    Attributes:
        policy: The URL policy.
        deadline: End of the whole fetch, in seconds of the monotonic clock.
        resolver: Resolves host names; None for the system's.
    """

    policy: UrlPolicy
    deadline: float
    resolver: Resolver | None = None

    def remaining(self) -> float:
        """Return the seconds until the deadline.

        Raises:
            TimeoutError: If the deadline has passed.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for the whole fetch is over")
        return left


# Reading it while it is unset is a LookupError: nothing connects outside of a fetch.
_CURRENT: ContextVar[FetchContext] = ContextVar("eagleray_url_fetch")
current_fetch = _CURRENT.get


@contextlib.contextmanager
def fetch_context(policy: UrlPolicy, resolver: Resolver | None = None) -> Iterator[None]:
    """Apply a policy to the connections of this thread; its total time starts now."""
    deadline = time.monotonic() + policy.total_seconds
    token = _CURRENT.set(FetchContext(policy, deadline, resolver))
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def shorter_deadline(seconds: float) -> Iterator[None]:
    """Limit reads in the `with` block to some seconds."""
    fetch = current_fetch()
    token = _CURRENT.set(fetch._replace(deadline=min(fetch.deadline, time.monotonic() + seconds)))
    try:
        yield
    finally:
        _CURRENT.reset(token)


class _DeadlineSocket(socket.socket):
    """A socket whose reads end at the deadline of the fetch.

    A server that sends a byte every few seconds would never exceed the time-out of one read.
    """

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        _limit_timeout(self)
        return super().recv_into(*args, **kwargs)


class _DeadlineTlsSocket(ssl.SSLSocket):
    """The same for TLS."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        _limit_timeout(self)
        return super().recv_into(*args, **kwargs)


def _limit_timeout(sock: socket.socket) -> None:
    timeout = sock.gettimeout()
    remaining = current_fetch().remaining()
    if timeout is None or remaining < timeout:
        sock.settimeout(remaining)


def _allowed_addresses(host: str, port: int) -> list[tuple[int, Any]]:
    """Resolve a host once, to pairs of family and socket address.

    Raises:
        InputError: If the policy does not allow an address. A single one is enough: a name with a
            public and a private address could smuggle the private one in.
        OSError: If the name has no address.
    """
    fetch = current_fetch()
    resolve = fetch.resolver or socket.getaddrinfo
    found = resolve(host, port, type=socket.SOCK_STREAM)
    addresses = [(int(family), address) for family, _, _, _, address in found]
    for family, address in addresses:
        known = family in (socket.AF_INET, socket.AF_INET6)
        if not known or not fetch.policy.allows_address(ipaddress.ip_address(address[0])):
            raise InputError(
                f"{host} resolves to an address outside of the public internet; if this is "
                "intended, name its network in EAGLERAY_URL_PRIVATE_NETWORKS."
            )
    return addresses


def _connect(host: str, port: int) -> socket.socket:
    """Connect to the first address of a host that accepts.

    Raises:
        InputError: If an address is not allowed.
        OSError: If none accepts.
    """
    fetch = current_fetch()
    failure = OSError("the name has no address")
    for family, address in _allowed_addresses(host, port):
        sock = _DeadlineSocket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(min(fetch.policy.connect_seconds, fetch.remaining()))
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _new_connection(connection: HTTPConnection) -> socket.socket:
    """Connect, and raise urllib3's exceptions: it swallows a bare `ECONNRESET`."""
    try:
        return _connect(connection.host, connection.port)
    except socket.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    except OSError as error:
        raise NewConnectionError(connection, str(error)) from error


class _CheckedConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _new_connection(self)


class _CheckedTlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _new_connection(self)


class _CheckedPool(HTTPConnectionPool):
    ConnectionCls = _CheckedConnection


class _CheckedTlsPool(HTTPSConnectionPool):
    ConnectionCls = _CheckedTlsConnection


def _outside_of_fetches(_record: logging.LogRecord) -> bool:
    """Drop urllib3's log records during fetches: they contain URLs, whose queries may be secret."""
    return _CURRENT.get(None) is None


def pool_for(target: Target) -> HTTPConnectionPool:
    """Return this process's connection pool for a host under the policy of the current fetch."""
    with _pools_lock:  # or threads that start together would each create pools
        manager = _pools(current_fetch().policy, os.getpid())
    return manager.connection_from_host(target.host, target.port, target.scheme)


@functools.lru_cache(maxsize=8)
def _pools(policy: UrlPolicy, _process: int) -> PoolManager:
    """Return the open connections under a policy, which all threads of a process share.

    Policies share none, as one may forbid what another allows. Nor do forked processes, which would
    read from their parent's sockets.
    """
    for name in ("urllib3.connection", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(_outside_of_fetches)
    context = create_urllib3_context()
    context.load_default_certs()
    context.sslsocket_class = _DeadlineTlsSocket
    manager = PoolManager(
        num_pools=_MAX_HOSTS,
        maxsize=_MAX_CONNECTIONS,
        block=True,
        ssl_context=context,
        timeout=Timeout(connect=policy.connect_seconds, read=policy.read_seconds),
        headers={
            "Accept": "image/*, */*;q=0.5",
            "Accept-Encoding": "identity",
            "User-Agent": f"eagleray/{version('eagleray')}",
        },
    )
    manager.pool_classes_by_scheme = {"http": _CheckedPool, "https": _CheckedTlsPool}
    return manager
