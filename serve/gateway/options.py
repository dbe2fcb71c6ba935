"""Options of the commands that run the gateway, and the settings of HAProxy made from them."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Annotated

import typer

from eagleray.core.settings import Settings
from eagleray.serve.gateway.haproxy import HAProxySettings, Limits
from eagleray.serve.gateway.sockets import ListeningSockets, private_folder
from eagleray.serving.logs import log_to_file

__all__ = [
    "GrpcPortOption",
    "MaxConnectionsOption",
    "MetricsAddressOption",
    "PortOption",
    "prepare_haproxy",
]

PortOption = Annotated[int, typer.Option(help="Port for HTTP.", min=1, max=65535)]
GrpcPortOption = Annotated[int, typer.Option(help="Port for gRPC; 0 for none.", min=0, max=65535)]
MaxConnectionsOption = Annotated[
    int, typer.Option(help="Maximum connections of one address at a time.", min=1, max=100_000)
]
MetricsAddressOption = Annotated[
    str | None,
    typer.Option(
        help="Address and port of HAProxy's own metrics for Prometheus, without a password, such "
        "as 127.0.0.1:9101. Default: none."
    ),
]


def prepare_haproxy(
    settings: Settings,
    sockets: ListeningSockets,
    stack: contextlib.ExitStack,
    *,
    max_connections_per_address: int,
    secret: str | None = None,
) -> HAProxySettings:
    """Start the gateway's log, and return the settings of its HAProxy.

    Args:
        settings: The settings of the command.
        sockets: Sockets that callers connect to.
        stack: Removes HAProxy's folder when it is closed.
        max_connections_per_address: Maximum connections of one address at a time.
        secret: Secret by which replicas recognise the gateway; None for a new one.
    """
    log_to_file(settings.service_logs / "gateway.jsonl")
    found = HAProxySettings(
        stack.enter_context(private_folder()),
        sockets,
        Limits.of_this_machine(max_connections_per_address),
        settings.service_logs / "haproxy.log",
    )
    return found if secret is None else dataclasses.replace(found, secret=secret)
