"""What a URL asks for, read in one way or not at all, and which addresses are public."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from eagleray.core.errors import InputError

__all__ = [
    "DEFAULT_PORTS",
    "Address",
    "Network",
    "Target",
    "ipv4_equivalent",
    "is_public",
    "parse",
]

DEFAULT_PORTS = {"http": 80, "https": 443}
_LONGEST_URL = 16_384

# Some parsers drop control characters, or take a backslash for a slash.
_AMBIGUOUS = re.compile(r"[\x00-\x1f\x7f\\]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*{_LABEL}")
# Some libraries make an address of a name whose last label is a number: 127.1, 0x7f.1.
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_GLOBAL_UNICAST_6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What one version of Python or another calls global, and is no host of the public internet.
_NOT_PUBLIC: tuple[Network, ...] = (
    ipaddress.IPv4Network("168.63.129.16/32"),  # services of Azure, seen from inside only
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocol assignments; metadata of Oracle's cloud
    ipaddress.IPv4Network("192.88.99.0/24"),  # relays of 6to4
    ipaddress.IPv6Network("2001::/23"),  # protocol assignments; Teredo
    ipaddress.IPv6Network("3fff::/20"),  # documentation
)


class Target(NamedTuple):
    """What a URL asks for.

    Attributes:
        host: Canonical: a lower-case ASCII name, an IPv4 address, or an IPv6 address in brackets.
        path: With the query, percent-encoded; it begins with a slash.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """The whole URL. Its query may hold a secret: never part of a message."""
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"


def parse(url: str) -> Target:
    """Read a URL that has one meaning.

    Raises:
        InputError: It has none, or several, or holds credentials. The message repeats nothing of
            it: an unreadable URL may hold a password anywhere.
    """
    if len(url) > _LONGEST_URL:
        raise InputError(f"The URL is longer than {_LONGEST_URL} characters; shorten it.")
    if _AMBIGUOUS.search(url):
        raise InputError(
            "The URL holds a backslash or a control character; percent-encode it (%5C, %0A)."
        )
    try:
        parts = parse_url(url)
    except (ValueError, HTTPError):
        raise InputError("The URL cannot be read; check its host and its port.") from None
    if parts.auth is not None:
        raise InputError("The URL holds a user name or a password; take them out.")
    if parts.scheme not in DEFAULT_PORTS:
        raise InputError(
            "The URL does not begin with http:// or https://; nothing else is fetched."
        )
    host = _canonical_host(parts.host or "")
    port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    if host is None or port == 0:
        raise InputError(
            "The URL's host is spelled in an unusual way; write a name, four decimal numbers "
            "(192.0.2.1) or an IPv6 address in brackets."
        )
    path = parts.request_uri
    return Target(parts.scheme, host, port, path if path.startswith("/") else f"/{path}")


def _canonical_host(host: str) -> str | None:
    """Return the one spelling of a host, or None where it is not certain what it means."""
    try:
        if not host.startswith("["):
            name = host.removesuffix(".").lower()
            if _NUMERIC_END.fullmatch(name):
                return str(ipaddress.IPv4Address(name))  # refuses all but four plain decimals
            return name if _NAME.fullmatch(name) else None
        address = ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    if address.scope_id is not None:
        return None
    return str(address.ipv4_mapped) if address.ipv4_mapped else f"[{address}]"


def is_public(address: Address) -> bool:
    """Whether an address is a host of the public internet, also through 6to4 and NAT64."""
    address = ipv4_equivalent(address)
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST_6:
        return False
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast


def ipv4_equivalent(address: Address) -> Address:
    """Return the IPv4 address at which packets to an IPv6 address end, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
