"""Refuses browser requests from pages of other sites, and for hosts that the service is not.

A browser sends requests for any page that is open in it, to any address that it reaches, including
loopback and private networks, and with the password that it has for that address. The page cannot
change what the browser says about such a request: `Origin`, `Sec-Fetch-Site` and `Host`. So a
request from another site's page is refused by the first two (a resource isolation policy), and one
from a page whose host name resolves to the service (DNS rebinding) by the last. Both are checked
before the key, since a browser may send that by itself.

Clients that are not browsers send neither `Origin` nor `Sec-Fetch-Site`, and are not affected.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from starlette.datastructures import Headers

from eagleray.serving.problems import ForbiddenError, ServiceError, UnsupportedError

__all__ = [
    "CrossSiteError",
    "HostError",
    "MisdirectedError",
    "require_own_host",
    "require_own_pages",
    "require_typed_body",
]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_LINKABLE = re.compile(r"/|/docs|/v1/batches/[^/]+/report")  # pages that others may link to
_OWN_SITES = frozenset({"same-origin", "none"})  # none: a user typed the address
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{0,5}))?", re.IGNORECASE | re.ASCII)
_MAX_HOST_LENGTH = 261  # a name of 255, a colon, a port
_JSON_ONLY = "/v1/batches"  # routes that start and end jobs
_SIMPLE = frozenset({"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"})


class CrossSiteError(ForbiddenError):
    """A page of another site sent the request."""

    title: ClassVar[str] = "Cross-site request"


class HostError(ServiceError):
    """The request has no Host header, several, or an invalid one."""

    http_status: ClassVar[int] = 400
    title: ClassVar[str] = "Bad Host"


class MisdirectedError(ServiceError):
    """The request is for another host."""

    http_status: ClassVar[int] = 421
    title: ClassVar[str] = "Misdirected request"


@dataclass(frozen=True, slots=True)
class _Host:
    name: str  # in lower case, an address in its usual form
    port: int | None
    is_address: bool


def require_own_host(
    headers: Headers, *, names: Sequence[str] | None, may_lack: bool = False
) -> None:
    """Refuse a request for a host that the service is not.

    IP addresses are always allowed, since no DNS name can be rebound to them. So is `localhost`,
    which browsers and systems resolve themselves. Names below it are not, since some systems
    resolve them by DNS.

    Args:
        headers: Headers of the request.
        names: Further names of the service; `*.NAME` is every name below one. None for any.
        may_lack: Whether a request without a host is allowed, as health checks send.

    Raises:
        HostError: If there is no host, or more than one, or it is malformed.
        MisdirectedError: If the service is not that host.
    """
    given = headers.getlist("host")
    if not given and may_lack:
        return
    if len(given) != 1:
        raise HostError(f"A request must have one Host header; this one has {len(given)}.")
    host = _parse_host(given[0])
    if host is None:
        raise HostError("The Host header must be a name or an address, with or without a port.")
    if names is None or host.is_address or host.name == "localhost":
        return
    if not any(_covers(pattern, host.name) for pattern in names):
        raise MisdirectedError(
            f"The service is not reached as {host.name!r}; use its IP address or localhost, or "
            "start it with --allow-hosts and this name."
        )


def require_own_pages(method: str, path: str, headers: Headers) -> None:
    """Refuse a request from a page of another origin.

    Links to the service's pages are allowed: opening a page changes nothing, and the linking site
    cannot read it. Pages served through a reverse proxy with TLS are the same origin if the proxy
    forwards `Host`.

    Args:
        method: Method of the request.
        path: Path of the request.
        headers: Headers of the request.

    Raises:
        CrossSiteError: If a page of another origin sent it.
    """
    hosts = headers.getlist("host")
    host = _parse_host(hosts[0]) if hosts else None
    if not all(_is_own(origin, host) for origin in headers.getlist("origin")):
        raise CrossSiteError(
            "A page of another origin sent this request, which is not allowed; send it from a "
            "program, or from a page of the service. A proxy in front of the service must forward "
            "the original Host header."
        )
    sites = headers.getlist("sec-fetch-site")
    if all(site in _OWN_SITES for site in sites) or _is_link(method, path, headers):
        return
    raise CrossSiteError(
        "A page of another site sent this request, which is not allowed; send it from a program, "
        "or open the address directly."
    )


def require_typed_body(method: str, path: str, headers: Headers) -> None:
    """Refuse a content type that any page may send, on routes that start or end jobs.

    Raises:
        UnsupportedError: If the body has such a content type.
    """
    if method in SAFE_METHODS or not f"{path}/".startswith(f"{_JSON_ONLY}/"):
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _SIMPLE:
        raise UnsupportedError(f"Content type {kind} is not supported here; send application/json.")


def _is_link(method: str, path: str, headers: Headers) -> bool:
    """Whether a browser opens a page of the service as a document of its own."""
    return (
        method in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
        and _LINKABLE.fullmatch(path) is not None
    )


def _is_own(origin: str, host: _Host | None) -> bool:
    scheme, _, rest = origin.partition("://")
    default, there = _DEFAULT_PORTS.get(scheme.lower()), _parse_host(rest)
    if host is None or default is None or there is None or there.name != host.name:
        return False
    return _port(there, default) == _port(host, default)


def _port(host: _Host, default: int) -> int:
    return default if host.port is None else host.port


def _parse_host(text: str) -> _Host | None:
    """Parse a host with or without a port; None if it is invalid."""
    found = _HOST.fullmatch(text) if len(text) <= _MAX_HOST_LENGTH else None
    if found is None:
        return None
    port = int(found[2]) if found[2] else None
    if port is not None and port > 65_535:
        return None
    try:
        return _Host(str(ipaddress.ip_address(found[1].strip("[]"))), port, is_address=True)
    except ValueError:
        name = found[1].lower().removesuffix(".")
        is_name = name and not name.startswith(("[", ".")) and ".." not in name
        return _Host(name, port, is_address=False) if is_name else None


def _covers(pattern: str, name: str) -> bool:
    pattern = pattern.lower()
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern
