"""Which requests of browsers are let in: those of the service's own pages, under its own names.

A browser sends requests for any page that is open in it, to any address that it reaches, loopback
and private networks included, and with the password that it was given for that address. What it
says of such a request the page cannot change: `Origin`, `Sec-Fetch-Site` and `Host`. So a request
of another site's page is refused by the first two (a resource isolation policy), and one of a page
behind a name that was pointed at the service (DNS rebinding) by the last. Both are asked before
the key is looked at, since a browser may send that by itself.

What is no browser sends neither `Origin` nor `Sec-Fetch-Site`, and is let in as before.
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

_LINKED = re.compile(r"/|/docs|/v1/batches/[^/]+/report")  # pages that others may link to
_OWN_SITES = frozenset({"same-origin", "none"})  # none: a person typed the address
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{0,5}))?", re.IGNORECASE | re.ASCII)
_LONGEST_HOST = 261  # a name of 255, a colon, a port
_TYPED = "/v1/batches"  # what starts and ends work that goes on after its answer
_SIMPLE = frozenset({"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"})


class CrossSiteError(ForbiddenError):
    """A page of another site sends the request."""

    title: ClassVar[str] = "Cross-site request"


class HostError(ServiceError):
    """The request names no host, several, or none that there can be."""

    http_status: ClassVar[int] = 400
    title: ClassVar[str] = "Bad Host"


class MisdirectedError(ServiceError):
    """The request is for a host that this service is not."""

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

    An address as the host is always let in, since no name stands for it that could be pointed
    elsewhere. So is `localhost`, which browsers and systems resolve themselves. Names below it are
    not, since some systems ask the network for those.

    Args:
        headers: Of the request.
        names: Further names of the service; `*.NAME` is every name below one. None for any.
        may_lack: Whether a request without a host is let in, as health checks send.

    Raises:
        HostError: There is no host, or more than one, or it is malformed.
        MisdirectedError: The service is not that host.
    """
    given = headers.getlist("host")
    if not given and may_lack:
        return
    if len(given) != 1:
        raise HostError(f"A request has one Host header; this one has {len(given)}.")
    host = _parse_host(given[0])
    if host is None:
        raise HostError("The Host header is no name or address, with or without a port.")
    if names is None or host.is_address or host.name == "localhost":
        return
    if not any(_covers(pattern, host.name) for pattern in names):
        raise MisdirectedError(
            f"The service does not answer as {host.name!r}; ask for it by its address or as "
            "localhost, or name it when the service is started: --allow-hosts."
        )


def require_own_pages(method: str, path: str, headers: Headers) -> None:
    """Refuse a request that a page of another origin sends.

    Opening one of the service's pages, as a link does, is let in: it does nothing, and whoever
    links sees nothing of it. What a reverse proxy serves over TLS is the same origin, as long as
    the proxy passes `Host` on.

    Args:
        method: Of the request.
        path: Of the request.
        headers: Of the request.

    Raises:
        CrossSiteError: A page of another origin sends it.
    """
    hosts = headers.getlist("host")
    host = _parse_host(hosts[0]) if hosts else None
    if not all(_is_own(origin, host) for origin in headers.getlist("origin")):
        raise CrossSiteError(
            "A page of another origin sends this request, and those are not answered; send it from "
            "a program, or from a page of the service. A proxy before the service has to pass on "
            "the Host that it was asked for."
        )
    sites = headers.getlist("sec-fetch-site")
    if all(site in _OWN_SITES for site in sites) or _is_link(method, path, headers):
        return
    raise CrossSiteError(
        "A page of another site sends this request, and those are not answered; send it from a "
        "program, or open the address yourself."
    )


def require_typed_body(method: str, path: str, headers: Headers) -> None:
    """Refuse a body of a kind that any page can send without being asked, where that does harm.

    Raises:
        UnsupportedError: It is one.
    """
    if method in SAFE_METHODS or not f"{path}/".startswith(f"{_TYPED}/"):
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _SIMPLE:
        raise UnsupportedError(
            f"A body of content type {kind} is not taken here; send application/json."
        )


def _is_link(method: str, path: str, headers: Headers) -> bool:
    """Whether a browser opens a page of the service in a window of its own."""
    return (
        method in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
        and _LINKED.fullmatch(path) is not None
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
    """Read a host with or without a port; None where it is none."""
    found = _HOST.fullmatch(text) if len(text) <= _LONGEST_HOST else None
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
