"""Addresses of Ray clusters: of one that this machine is part of, or of a head's job server.

auto, head:6379              a cluster that this machine is a node of
ray-jobs+https://head        the job server of a cluster's head, from outside, with its token
ray-jobs+http://127.0.0.1    the same over plain HTTP: on loopback only, as with a tunnel
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from eagleray.core.errors import InputError

__all__ = ["job_server_url", "require_cluster_address", "require_node_address"]

_PREFIX = "ray-jobs+"
_PORTS = {"http": 8265, "https": 443}
_FORMS = (
    "give `auto` or HOST:PORT on a node of the cluster, or ray-jobs+https://HEAD from outside, "
    "where the cluster's token is needed"
)


def require_cluster_address(address: str) -> None:
    """Refuse an address that no command understands.

    Raises:
        InputError: With the forms that there are.
    """
    if job_server_url(address) is None and "://" in address:
        scheme = address.partition("://")[0]
        reasons = {
            "ray": "Ray Client does not carry Ray Data",
            "http": "the scheme does not say what answers there",
            "https": "the scheme does not say what answers there",
        }
        reason = reasons.get(scheme, f"there is no scheme {scheme}")
        raise InputError(f"The address of the cluster is {address}, and {reason}; {_FORMS}.")


def require_node_address(address: str) -> None:
    """Refuse an address that a process cannot join as a part of the cluster.

    Raises:
        InputError: With the forms that there are.
    """
    require_cluster_address(address)
    if job_server_url(address) is not None:
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
    parts = urlsplit(address.removeprefix(_PREFIX))
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in _PORTS or not host:
        raise InputError(f"{address} is not the address of a job server; {_FORMS}.")
    if parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise InputError(
            f"{address} holds more than a host and a port; the token comes from a file or from "
            "RAY_AUTH_TOKEN."
        )
    if parts.scheme == "http" and not _is_loopback(host):
        raise InputError(
            f"{address} would send the cluster's token over the network in plain text; use "
            f"ray-jobs+https://, or a tunnel (`ssh -L 8265:127.0.0.1:8265 {host}`) and "
            "ray-jobs+http://127.0.0.1:8265."
        )
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port or _PORTS[parts.scheme]}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
