"""Defines the URL policy: the hosts and addresses that may be fetched, and the limits."""

from __future__ import annotations

import functools
import ipaddress
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

from eagleray.core.errors import InputError
from eagleray.io.http.urls import (
    DEFAULT_PORTS,
    Address,
    Network,
    Target,
    ipv4_equivalent,
    is_public,
    parse_url,
)

__all__ = ["UrlPolicy"]

_MAX_REDIRECTS = 20
_MIN_PREFIX_LENGTHS = {4: 8, 6: 7}  # by IP version, of 10.0.0.0/8 and fc00::/7
_PATTERN = re.compile(r"(?P<subdomains>\*\.)?(?P<host>\*|[^*/@?#]+?)(?::(?P<port>\*|[0-9]{1,5}))?")

Port = int | Literal["*"] | None


class _HostPattern(NamedTuple):
    """A pattern of hosts and ports; the port is a number, `*` for any, or None for the default."""

    subdomains: bool
    host: str
    port: Port

    def __str__(self) -> str:
        prefix = "*." if self.subdomains else ""
        return f"{prefix}{self.host}" + ("" if self.port is None else f":{self.port}")

    def matches(self, target: Target) -> bool:
        port = DEFAULT_PORTS[target.scheme] if self.port is None else self.port
        if port not in ("*", target.port):
            return False
        if self.subdomains:
            return target.host.endswith(f".{self.host}")
        return self.host in ("*", target.host)


@dataclass(frozen=True)
class UrlPolicy:
    """Which URLs may be fetched, and within which limits. The default allows none.

    Equivalent policies are equal: names become lower-case ASCII, lists are sorted.

    Attributes:
        hosts: Patterns of hosts: `images.example.com`; `*.example.com` for every subdomain; `*` for
            any host. They apply to the default port of a scheme; `host:8080` is another port,
            `host:*` any port.
        private_networks: CIDR blocks outside of the public internet (private, loopback, link-local)
            that may be connected to. A host in them must still match one of `hosts`.
        schemes: `http`, `https` or both.
        max_redirects: Maximum number of redirects, each of which is checked like the first URL.
        connect_seconds: Time-out of a connection to one address, and again of its TLS handshake.
        read_seconds: Time-out of a single read.
        total_seconds: Time-out of one fetch with its redirects and retries.

    Raises:
        InputError: If a field is invalid; the message names it.
    """

    hosts: tuple[str, ...] = ()
    private_networks: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ("http", "https")
    max_redirects: int = 5
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    total_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, normalize in _NORMALIZERS.items():
            values = getattr(self, name)
            is_list = isinstance(values, tuple | list) and all(isinstance(v, str) for v in values)
            if not is_list:
                _reject(name, f"{values!r} is not a list of strings")
            object.__setattr__(self, name, tuple(sorted({normalize(value) for value in values})))
        if not self.schemes:
            _reject("schemes", "name http, https or both")
        if type(self.max_redirects) is not int or not 0 <= self.max_redirects <= _MAX_REDIRECTS:
            _reject("max_redirects", f"it must be a whole number from 0 to {_MAX_REDIRECTS}")
        for name in ("connect_seconds", "read_seconds", "total_seconds"):
            object.__setattr__(self, name, _seconds(name, getattr(self, name)))

    def allows(self, url: str) -> bool:
        """Whether the policy allows a URL by its text; nothing is resolved."""
        try:
            self.target(url)
        except InputError:
            return False
        return True

    def target(self, url: str) -> Target:
        """Parse a URL that the policy allows.

        Raises:
            InputError: If the URL is ambiguous, or the policy does not allow it.
        """
        target = parse_url(url)
        if target.scheme not in self.schemes:
            raise InputError(f"{target.scheme} URLs are not fetched; use {self.schemes[0]}.")
        if not any(pattern.matches(target) for pattern in self._patterns):
            is_default = target.port == DEFAULT_PORTS[target.scheme]
            host = target.host if is_default else f"{target.host}:{target.port}"
            raise InputError(
                f"{host} is not among the hosts that images are fetched from; "
                f"allow it with --allow-urls '{host}'."
            )
        return target

    def allows_address(self, address: Address) -> bool:
        """Whether an address is public, or in one of the policy's private networks."""
        effective = ipv4_equivalent(address)
        return is_public(effective) or any(effective in network for network in self._networks)

    @functools.cached_property
    def _patterns(self) -> tuple[_HostPattern, ...]:
        return tuple(map(_host_pattern, self.hosts))

    @functools.cached_property
    def _networks(self) -> tuple[Network, ...]:
        return tuple(map(_private_network, self.private_networks))


def _reject(name: str, problem: str) -> NoReturn:
    raise InputError(f"URL policy, {name}: {problem}.")


def _seconds(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        _reject(name, f"it must be a number of seconds above 0, not {value!r}")
    return float(value)


def _scheme(text: str) -> str:
    if text not in DEFAULT_PORTS:
        _reject("schemes", f"{text!r} is neither http nor https")
    return text


def _host_pattern(text: str) -> _HostPattern:
    """Parse a pattern of hosts.

    Raises:
        InputError: If it is invalid.
    """
    match = _PATTERN.fullmatch(text)
    host = _pattern_host(match["host"]) if match else None
    port: Port = None
    if match and match["port"]:
        port = "*" if match["port"] == "*" else int(match["port"])
    subdomains = bool(match and match["subdomains"])
    is_valid_port = not isinstance(port, int) or 0 < port < 2**16
    if host is None or (subdomains and host[0] in "*[") or not is_valid_port:
        _reject(
            "hosts",
            f"{text!r} is not a pattern of hosts; write images.example.com, *.example.com, "
            "images.example.com:8080 or *",
        )
    return _HostPattern(subdomains, host, port)


def _pattern_host(text: str) -> str | None:
    if text == "*":
        return text
    try:
        return parse_url(f"http://{text}/").host
    except InputError:
        return None


def _private_network(text: str) -> Network:
    """Parse a CIDR block.

    Raises:
        InputError: If it is invalid, or wider than any private network.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        _reject("private_networks", f"{error}; write it as 10.0.0.0/8")
    if network.prefixlen < _MIN_PREFIX_LENGTHS[network.version]:
        _reject("private_networks", f"{text} is wider than any private network")
    return network


_NORMALIZERS = {
    "hosts": lambda text: str(_host_pattern(text)),
    "private_networks": lambda text: str(_private_network(text)),
    "schemes": _scheme,
}
