"""Addresses of clusters: of one that this machine is part of, of a service, or of a head.

auto, head:6379              a cluster that this machine is a node of
https://service              the service of a cluster, from outside, with an application's key
http://127.0.0.1:8000        the same over plain HTTP: on loopback only, as with a tunnel
ray-jobs+https://head        the job server of a cluster's head, from outside, with its token
ray-jobs+http://127.0.0.1    the same over plain HTTP: on loopback only, as with a tunnel
"""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from eagleray.core.environment import is_loopback_address
from eagleray.core.errors import InputError

__all__ = ["job_server_url", "require_cluster_address", "require_node_address", "service_url"]

_PREFIX = "ray-jobs+"
_SERVICE = ("https://", "http://")
_PORTS = {"http": 8265, "https": 443}
_FORMS = (
    "give https://SERVICE with an application's key, ray-jobs+https://HEAD with the cluster's "
    "token, or `auto` or HOST:PORT on a node of the cluster"
)


def require_cluster_address(address: str) -> None:
    """Refuse an address that no command understands.

    Raises:
        InputError: With the forms that there are.
    """
    if job_server_url(address) or service_url(address) or "://" not in address:
        return
    scheme = address.partition("://")[0]
    reasons = {"ray": "Ray Client does not carry Ray Data"}
    reason = reasons.get(scheme, f"there is no scheme {scheme}")
    raise InputError(f"The address of the cluster is {address}, and {reason}; {_FORMS}.")


def require_node_address(address: str) -> None:
    """Refuse an address that a process cannot join as a part of the cluster.

    Raises:
        InputError: With the forms that there are.
    """
    require_cluster_address(address)
    if job_server_url(address) or service_url(address):
        raise InputError(
            f"{address} takes commands and no processes; run `eagleray COMMAND … --cluster "
            f"{address}`, or join the cluster on one of its nodes by `auto`."
        )


def job_server_url(address: str) -> str | None:
    """Return the URL of a job server without a slash at its end; None for other addresses.

    Raises:
        InputError: If the address has no host, a path or a password, or plain HTTP would carry the
            token over a network.
    """
    if not address.startswith(_PREFIX):
        return None
    parts, host, port = _split(address, address.removeprefix(_PREFIX), "a job server")
    if parts.path.strip("/"):
        raise InputError(
            f"{address} holds more than a host and a port; the token comes from a file or from "
            "RAY_AUTH_TOKEN."
        )
    if _is_plain(parts, host):
        raise InputError(
            f"{address} would send the cluster's token over the network in plain text; use "
            f"ray-jobs+https://, or a tunnel (`ssh -L 8265:127.0.0.1:8265 {host}`) and "
            "ray-jobs+http://127.0.0.1:8265."
        )
    return f"{parts.scheme}://{_shown(host)}:{port or _PORTS[parts.scheme]}"


def service_url(address: str) -> str | None:
    """Return the URL of a service without a slash at its end; None for other addresses.

    Raises:
        InputError: If the address has no host, or a password, or plain HTTP would carry the key
            over a network.
    """
    if not address.startswith(_SERVICE):
        return None
    parts, host, port = _split(address, address, "a service")
    if _is_plain(parts, host):
        raise InputError(
            f"{address} would send the application's key over the network in plain text; use "
            f"https://, or a tunnel (`ssh -L 8000:127.0.0.1:8000 {host}`) and "
            "http://127.0.0.1:8000. The dashboard of Ray is ray-jobs+https://HEAD."
        )
    place = _shown(host) if port is None else f"{_shown(host)}:{port}"
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}"


def _split(address: str, url: str, kind: str) -> tuple[SplitResult, str, int | None]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = SplitResult("", "", "", "", ""), None, None
    if parts.scheme not in _PORTS or not host:
        raise InputError(f"{address} is not the address of {kind}; {_FORMS}.")
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError(
            f"{parts.scheme}://{host} has more than a host, a port and a path in its address; keys "
            "and tokens come from a file or from the environment."
        )
    return parts, host, port


def _is_plain(parts: SplitResult, host: str) -> bool:
    """Whether a secret would cross a network unencrypted."""
    return parts.scheme == "http" and host != "localhost" and not is_loopback_address(host)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
