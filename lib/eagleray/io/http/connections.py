"""Connections that resolve, judge, and connect to what was judged, before a deadline."""

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
from collections.abc import Iterator
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

__all__ = ["Fetch", "current_fetch", "fetch_context", "pool_for", "shorter_deadline"]

_NUM_HOSTS = 64  # pools that a process keeps for one policy
_NUM_CONNECTIONS = 16  # in each pool; a thread that finds none free waits for one

_ONE_AT_A_TIME = threading.Lock()
_look_up = socket.getaddrinfo


class Fetch(NamedTuple):
    """What the sockets of a fetch must know, and urllib3 has no way to tell them.

    Attributes:
        deadline: Of the whole fetch, in seconds of the monotonic clock.
    """

    policy: UrlPolicy
    deadline: float

    def remaining(self) -> float:
        """Seconds until the deadline.

        Raises:
            TimeoutError: There are none.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for the whole fetch is over")
        return left


# Where it is unset, asking for it is a LookupError: nothing connects outside of a fetch.
_CURRENT: ContextVar[Fetch] = ContextVar("eagleray_url_fetch")
current_fetch = _CURRENT.get


@contextlib.contextmanager
def fetch_context(policy: UrlPolicy) -> Iterator[None]:
    """Make connections in this thread obey the policy; its total time begins now."""
    token = _CURRENT.set(Fetch(policy, time.monotonic() + policy.total_seconds))
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def shorter_deadline(seconds: float) -> Iterator[None]:
    """Give what is read inside no more than some seconds."""
    fetch = current_fetch()
    token = _CURRENT.set(fetch._replace(deadline=min(fetch.deadline, time.monotonic() + seconds)))
    try:
        yield
    finally:
        _CURRENT.reset(token)


class _DeadlineSocket(socket.socket):
    """A socket whose waits end at the fetch's deadline.

    A server that sends a byte every few seconds never exceeds the time for one read.
    """

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        _wait_no_longer_than_the_fetch(self)
        return super().recv_into(*args, **kwargs)


class _DeadlineTlsSocket(ssl.SSLSocket):
    """The same for TLS."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        _wait_no_longer_than_the_fetch(self)
        return super().recv_into(*args, **kwargs)


def _wait_no_longer_than_the_fetch(sock: socket.socket) -> None:
    wait = sock.gettimeout()
    remaining = current_fetch().remaining()
    if wait is None or remaining < wait:
        sock.settimeout(remaining)


def _judged_addresses(host: str, port: int) -> list[tuple[int, Any]]:
    """Resolve a host, once, to pairs of family and socket address that the policy allows.

    Raises:
        InputError: One address or more is not allowed. One is enough: a name with a public and a
            private address is a way to smuggle the private one in.
        OSError: The name has no address.
    """
    policy = current_fetch().policy
    found = _look_up(host, port, type=socket.SOCK_STREAM)
    addresses = [(int(family), place) for family, _, _, _, place in found]
    for family, place in addresses:
        known = family in (socket.AF_INET, socket.AF_INET6)
        if not known or not policy.allows_address(ipaddress.ip_address(place[0])):
            raise InputError(
                f"{host} leads to an address outside of the public internet; if it is meant to, "
                "name its network in EAGLERAY_URL_PRIVATE_NETWORKS."
            )
    return addresses


def _connected(host: str, port: int) -> socket.socket:
    """Connect to the first of a host's addresses that answers.

    Raises:
        InputError: An address is not allowed.
        OSError: None answers.
    """
    fetch = current_fetch()
    failure = OSError("the name has no address")
    for family, place in _judged_addresses(host, port):
        sock = _DeadlineSocket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(min(fetch.policy.connect_seconds, fetch.remaining()))
            sock.connect(place)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _new_connection(connection: HTTPConnection) -> socket.socket:
    """Connect, with failures as urllib3 wants them: it swallows a bare `ECONNRESET`."""
    try:
        return _connected(connection.host, connection.port)
    except socket.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    except OSError as error:
        raise NewConnectionError(connection, str(error)) from error


class _JudgedConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _new_connection(self)


class _JudgedTlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _new_connection(self)


class _JudgedPool(HTTPConnectionPool):
    ConnectionCls = _JudgedConnection


class _JudgedTlsPool(HTTPSConnectionPool):
    ConnectionCls = _JudgedTlsConnection


def _is_of_others(_record: logging.LogRecord) -> bool:
    """Silence urllib3 about our fetches: it logs whole URLs, whose queries may hold secrets."""
    return _CURRENT.get(None) is None


def pool_for(target: Target) -> HTTPConnectionPool:
    """Return this process's connections to a host under the current fetch's policy."""
    with _ONE_AT_A_TIME:  # or threads that begin together would make pools for each of them
        manager = _pools(current_fetch().policy, os.getpid())
    return manager.connection_from_host(target.host, target.port, target.scheme)


@functools.lru_cache(maxsize=8)
def _pools(policy: UrlPolicy, _process: int) -> PoolManager:
    """Return the open connections under a policy, which all threads of a process share.

    Policies share none: what one of them allowed another may refuse. Nor does a forked process,
    which would read from its parent's sockets.
    """
    for name in ("urllib3.connection", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(_is_of_others)
    context = create_urllib3_context()
    context.load_default_certs()
    context.sslsocket_class = _DeadlineTlsSocket
    manager = PoolManager(
        num_pools=_NUM_HOSTS,
        maxsize=_NUM_CONNECTIONS,
        block=True,
        ssl_context=context,
        timeout=Timeout(connect=policy.connect_seconds, read=policy.read_seconds),
        headers={
            "Accept": "image/*, */*;q=0.5",
            "Accept-Encoding": "identity",
            "User-Agent": f"eagleray/{version('eagleray')}",
        },
    )
    manager.pool_classes_by_scheme = {"http": _JudgedPool, "https": _JudgedTlsPool}
    return manager
