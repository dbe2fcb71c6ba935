"""The URL policy: which hosts and which addresses, and within which bounds."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import json
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
    parse,
)

__all__ = ["UrlPolicy"]

_MAX_REDIRECTS = 20
_WIDEST_PRIVATE = {4: 8, 6: 7}  # prefix lengths: 10.0.0.0/8 and fc00::/7
_PATTERN = re.compile(r"(?P<star>\*\.)?(?P<host>\*|[^*/@?#]+?)(?::(?P<port>\*|[0-9]{1,5}))?")

Port = int | Literal["*"] | None


class _HostPattern(NamedTuple):
    """Which hosts, and on which of their ports: a number, `*` for any, None for the usual one."""

    star: bool
    host: str
    port: Port

    def __str__(self) -> str:
        star = "*." if self.star else ""
        return f"{star}{self.host}" + ("" if self.port is None else f":{self.port}")

    def matches(self, target: Target) -> bool:
        port = DEFAULT_PORTS[target.scheme] if self.port is None else self.port
        if port not in ("*", target.port):
            return False
        if self.star:
            return target.host.endswith(f".{self.host}")
        return self.host in ("*", target.host)


@dataclass(frozen=True)
class UrlPolicy:
    """From where URLs are fetched, and within which bounds. The default fetches nothing.

    Policies that mean the same are equal: names become lower-case ASCII, lists are sorted.

    Attributes:
        hosts: Patterns: `images.example.com`; `*.example.com` for every name below it; `*` for any
            host. They mean the usual port of a scheme; `host:8080` is another, `host:*` is any.
        private_networks: CIDRs that are connected to although they are not the public internet:
            private, loopback, link-local. A host in them must still match one of `hosts`.
        schemes: `http`, `https` or both.
        max_redirects: Hops that are followed, each judged like the first URL.
        connect_seconds: For a connection to one address, and again for its TLS handshake.
        read_seconds: Longest silence of a server.
        total_seconds: For one fetch with its redirects and retries.

    Raises:
        InputError: Naming the field.
    """

    hosts: tuple[str, ...] = ()
    private_networks: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ("http", "https")
    max_redirects: int = 5
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    total_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, spell in _SPELLINGS.items():
            values = getattr(self, name)
            texts = isinstance(values, tuple | list) and all(isinstance(v, str) for v in values)
            if not texts:
                _refuse(name, f"{values!r} is not a list of texts")
            object.__setattr__(self, name, tuple(sorted({spell(value) for value in values})))
        if not self.schemes:
            _refuse("schemes", "name http, https or both")
        if type(self.max_redirects) is not int or not 0 <= self.max_redirects <= _MAX_REDIRECTS:
            _refuse("max_redirects", f"it is a whole number from 0 to {_MAX_REDIRECTS}")
        for name in ("connect_seconds", "read_seconds", "total_seconds"):
            object.__setattr__(self, name, _seconds(name, getattr(self, name)))

    def allows(self, url: str) -> bool:
        """Whether the URL would be asked for, as far as its text tells: nothing is resolved."""
        try:
            self.target(url)
        except InputError:
            return False
        return True

    def target(self, url: str) -> Target:
        """Return what a URL asks for.

        Raises:
            InputError: It cannot be read in one way, or the policy does not allow it.
        """
        target = parse(url)
        if target.scheme not in self.schemes:
            raise InputError(f"{target.scheme} is not fetched here; use {self.schemes[0]}.")
        if not any(pattern.matches(target) for pattern in self._patterns):
            usual = target.port == DEFAULT_PORTS[target.scheme]
            place = target.host if usual else f"{target.host}:{target.port}"
            raise InputError(
                f"{place} is not among the hosts that images are fetched from; "
                f"allow it with --allow-urls '{place}'."
            )
        return target

    def allows_address(self, address: Address) -> bool:
        """Whether the address is public, or in a network that the policy names."""
        meant = ipv4_equivalent(address)
        return is_public(meant) or any(meant in network for network in self._networks)

    def to_json(self) -> str:
        """Return the canonical JSON form."""
        from eagleray.imaging.contract import canonical_json

        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> UrlPolicy:
        """Read a policy from JSON.

        Raises:
            InputError: Naming the field at fault.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise InputError(f"The URL policy is no JSON object of its fields: {error}.") from error

    @functools.cached_property
    def _patterns(self) -> tuple[_HostPattern, ...]:
        return tuple(map(_host_pattern, self.hosts))

    @functools.cached_property
    def _networks(self) -> tuple[Network, ...]:
        return tuple(map(_private_network, self.private_networks))


def _refuse(name: str, fault: str) -> NoReturn:
    raise InputError(f"URL policy, {name}: {fault}.")


def _seconds(name: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        _refuse(name, f"it is a number of seconds above 0, not {value!r}")
    return float(value)


def _scheme(text: str) -> str:
    if text not in DEFAULT_PORTS:
        _refuse("schemes", f"{text!r} is neither http nor https")
    return text


def _host_pattern(text: str) -> _HostPattern:
    """Read a pattern of hosts.

    Raises:
        InputError: It is none.
    """
    match = _PATTERN.fullmatch(text)
    host = _pattern_host(match["host"]) if match else None
    port: Port = None
    if match and match["port"]:
        port = "*" if match["port"] == "*" else int(match["port"])
    star = bool(match and match["star"])
    exists = not isinstance(port, int) or 0 < port < 2**16
    if host is None or (star and host[0] in "*[") or not exists:
        _refuse(
            "hosts",
            f"{text!r} is no pattern of hosts; write images.example.com, *.example.com, "
            "images.example.com:8080 or *",
        )
    return _HostPattern(star, host, port)


def _pattern_host(text: str) -> str | None:
    if text == "*":
        return text
    try:
        return parse(f"http://{text}/").host
    except InputError:
        return None


def _private_network(text: str) -> Network:
    """Read a CIDR.

    Raises:
        InputError: It is none, or so wide that it holds the internet.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        _refuse("private_networks", f"{error}; write it as 10.0.0.0/8")
    if network.prefixlen < _WIDEST_PRIVATE[network.version]:
        _refuse("private_networks", f"{text} is wider than any private network")
    return network


_SPELLINGS = {
    "hosts": lambda text: str(_host_pattern(text)),
    "private_networks": lambda text: str(_private_network(text)),
    "schemes": _scheme,
}
