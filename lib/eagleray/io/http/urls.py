"""Parses URLs unambiguously or not at all, and decides which addresses are public."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from urllib3.exceptions import HTTPError
from urllib3.util import parse_url as split_url

from eagleray.core.errors import InputError

__all__ = [
    "DEFAULT_PORTS",
    "Address",
    "Network",
    "Target",
    "ipv4_equivalent",
    "is_public",
    "parse_url",
]

DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_URL_LENGTH = 16_384

# Some parsers drop control characters, or treat a backslash as a slash.
_AMBIGUOUS = re.compile(r"[\x00-\x1f\x7f\\]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*{_LABEL}")
# Some libraries parse a name whose last label is a number as an address: 127.1, 0x7f.1.
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_GLOBAL_UNICAST_6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Networks that some versions of Python call global, but that are not on the public internet.
_NOT_PUBLIC: tuple[Network, ...] = (
    ipaddress.IPv4Network("168.63.129.16/32"),  # services of Azure, reachable from inside only
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocol assignments; metadata of Oracle's cloud
    ipaddress.IPv4Network("192.88.99.0/24"),  # relays of 6to4
    ipaddress.IPv6Network("2001::/23"),  # protocol assignments; Teredo
    ipaddress.IPv6Network("3fff::/20"),  # documentation
)


class Target(NamedTuple):
    """A parsed URL.

    Attributes:
        scheme: `http` or `https`.
        host: Canonical host: a lower-case ASCII name, an IPv4 address, or an IPv6 address in
            brackets.
        port: Port number.
        path: Percent-encoded path with the query; it starts with a slash.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """The whole URL. Its query may be secret, so it is never part of a message."""
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"


def parse_url(url: str) -> Target:
    """Parse a URL that has a single interpretation.

    Raises:
        InputError: If it is invalid or ambiguous, or contains credentials. The message quotes
            nothing of it: an invalid URL may contain a password anywhere.
    """
    if len(url) > _MAX_URL_LENGTH:
        raise InputError(f"The URL is longer than {_MAX_URL_LENGTH} characters; shorten it.")
    if _AMBIGUOUS.search(url):
        raise InputError(
            "The URL contains a backslash or a control character; percent-encode it (%5C, %0A)."
        )
    try:
        parts = split_url(url)
    except (ValueError, HTTPError):
        raise InputError("The URL cannot be parsed; check its host and its port.") from None
    if parts.auth is not None:
        raise InputError("The URL contains a user name or a password; remove them.")
    if parts.scheme not in DEFAULT_PORTS:
        raise InputError(
            "The URL does not start with http:// or https://; nothing else is fetched."
        )
    if not parts.host:
        raise InputError(
            f"The URL has no host; write it behind {parts.scheme}://, as in "
            f"{parts.scheme}://example.com/a.jpg."
        )
    host = _canonical_host(parts.host)
    port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    if host is None or port == 0:
        raise InputError(
            "The URL's host is spelled in an unusual way; write a name, four decimal numbers "
            "(192.0.2.1) or an IPv6 address in brackets."
        )
    path = parts.request_uri
    return Target(parts.scheme, host, port, path if path.startswith("/") else f"/{path}")


def _canonical_host(host: str) -> str | None:
    """Return the canonical spelling of a host, or None if it is ambiguous."""
    try:
        if not host.startswith("["):
            name = host.removesuffix(".").lower()
            if _NUMERIC_END.fullmatch(name):
                return str(ipaddress.IPv4Address(name))  # accepts four plain decimals only
            return name if _NAME.fullmatch(name) else None
        address = ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    if address.scope_id is not None:
        return None
    return str(address.ipv4_mapped) if address.ipv4_mapped else f"[{address}]"


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet, also through 6to4 and NAT64."""
    address = ipv4_equivalent(address)
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST_6:
        return False
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast


def ipv4_equivalent(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address is translated to, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
