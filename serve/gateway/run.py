"""Run the gateway of a service whose replicas are declared to a cluster.

    python -m eagleray.serve.gateway.run --host 0.0.0.0
    eagleray gateway
    eagleray gateway --host 0.0.0.0 --join-port 8002

`eagleray serve` is gateway and deployment in one command, on a node of the cluster. This command is
the gateway alone and needs no Ray: the replicas of an application that `eagleray.serve.declared`
builds join it from any cluster, also from an old and a new one at the same time.
"""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from eagleray.cli.common import JsonOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import run_command
from eagleray.core.logs import use_log_format
from eagleray.core.settings import read_settings
from eagleray.serve.events import CommandEvents
from eagleray.serve.gateway.gateway import running_gateway
from eagleray.serve.gateway.join import require_gateway_secret
from eagleray.serve.gateway.options import (
    GrpcPortOption,
    MaxConnectionsOption,
    MetricsAddressOption,
    PortOption,
    prepare_haproxy,
)
from eagleray.serve.gateway.sockets import ListenAddress, open_sockets


def main(
    host: Annotated[
        str,
        typer.Option(help="Address for callers and replicas; 0.0.0.0 for every IPv4 address."),
    ] = "127.0.0.1",
    port: PortOption = 8000,
    grpc_port: GrpcPortOption = 8001,
    join_port: Annotated[
        int, typer.Option(help="Port at which replicas join.", min=1, max=65535)
    ] = 8002,
    max_connections_per_address: MaxConnectionsOption = 1000,
    metrics_address: MetricsAddressOption = None,
    json_output: JsonOption = False,
) -> None:
    """Receive the requests of a service whose replicas are declared to a cluster."""
    with command_errors(), contextlib.ExitStack() as stack:
        console = Console(json_output=json_output)
        settings = read_settings()
        use_log_format(settings)
        settings.make_home()
        address = ListenAddress(host, port, grpc_port, metrics_address)
        events = CommandEvents(console)
        secret = require_gateway_secret(settings)

        # build
        sockets = stack.enter_context(open_sockets(address))
        gateway_settings = prepare_haproxy(
            settings,
            sockets,
            stack,
            max_connections_per_address=max_connections_per_address,
            secret=secret,
        )
        stack.enter_context(
            running_gateway(
                gateway_settings, on_fault=events.on_fault, node_ip=host, join_port=join_port
            )
        )

        # run
        if console.for_scripts:
            console.emit_line({"url": address.url, "grpc_port": grpc_port, "join_port": join_port})
        else:
            console.say(f"Receiving requests on {address.url}, and replicas on port {join_port}.")
        for _ in events.reload_requests():
            console.note("The gateway has no configuration to read again; it continues.")


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
