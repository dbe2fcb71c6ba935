"""Serve models, on an embedded Ray or on a cluster.

    python -m eagleray.serve.run digits --port 8000
    eagleray serve
    eagleray serve digits flowers --replicas 2
    eagleray serve --config service.yaml --host 0.0.0.0
    eagleray serve digits --cluster auto

On SIGHUP it reads its configuration again: new replicas replace the old ones, one by one, and no
request is lost.

The command is the gateway of the service: it owns the sockets that callers connect to, and keeps
HAProxy running in front of the replicas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from eagleray.cli.common import ClusterOption, JsonOption, VerboseOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import job_session, job_settings, run_command
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.core.errors import EaglerayError
from eagleray.core.settings import Settings
from eagleray.database.store import OpenDatabase, open_database
from eagleray.registry.registry import Registry
from eagleray.serve import deployment
from eagleray.serve.events import CommandEvents
from eagleray.serve.gateway.gateway import running_gateway
from eagleray.serve.gateway.join import GatewayAddress
from eagleray.serve.gateway.options import (
    GrpcPortOption,
    MaxConnectionsOption,
    MetricsAddressOption,
    PortOption,
    prepare_haproxy,
)
from eagleray.serve.gateway.sockets import ListenAddress, open_sockets
from eagleray.serving.callers.admission import Access, determine_access
from eagleray.serving.callers.applications import Applications
from eagleray.serving.config import ServiceConfig
from eagleray.serving.versions.routing import DEFAULT_ALIAS, Snapshot

# --- parse ------------------------------------------------------------------------------------


def require_names(config: ServiceConfig, registry: Registry) -> None:
    """Refuse models that are not registered and engines that cannot run them, before a start.

    Raises:
        UnknownNameError: If one is not known; the message has the nearest names.
        InputError: If the engine or the precision is not one of a model in production.
        OutageError: If the registry does not answer.
    """
    aliases: Mapping[str, Mapping[str, int]] = registry.aliases()[0] if config.models else {}
    for model in config.models:
        Snapshot(aliases).require_model(model)
    if (config.engine, config.precision) == ("auto", "auto"):
        return
    versions = [
        registry.get(model, version=aliases[model][DEFAULT_ALIAS])
        for model in config.models
        if DEFAULT_ALIAS in aliases[model]
    ]
    # The eager engine runs every network of PyTorch, which takes seconds to import.
    manifests = [one for one in map(registry.manifest, versions) if not one.has_weights]
    if manifests or config.engine not in ("auto", "eager"):
        from eagleray.inference.choice import require_engine

        require_engine(config.engine)
        for manifest in manifests:
            require_engine(config.engine, manifest, precision=config.precision)


@with_spec_options(ServiceConfig, argument="models")
def main(
    fields: dict[str, Any],
    config: Annotated[
        str | None, typer.Option(help="YAML file of the fields below; options override it.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; 0.0.0.0 for every IPv4 address, :: for all."),
    ] = "127.0.0.1",
    port: PortOption = 8000,
    grpc_port: GrpcPortOption = 8001,
    max_connections_per_address: MaxConnectionsOption = 1000,
    metrics_address: MetricsAddressOption = None,
    cluster: ClusterOption = None,
    verbose: VerboseOption = False,
    json_output: JsonOption = False,
) -> None:
    """Serve registered models over HTTP and gRPC, always in the right version."""
    with command_errors(), contextlib.ExitStack() as stack:
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        parsed = read_spec(ServiceConfig, fields, file=config)
        address = ListenAddress(host, port, grpc_port, metrics_address)
        is_embedded = cluster is None and settings.ray_address is None
        events = CommandEvents(console)

        # build
        sockets = stack.enter_context(open_sockets(address))
        database = open_database(settings)
        access = determine_access(database, host_is_loopback=sockets.are_loopback)
        require_names(parsed, Registry(settings))
        if is_embedded and parsed.precision == "bfloat16":
            from eagleray.inference.choice import require_precision_here

            require_precision_here(parsed.engine, parsed.precision)
        gateway_settings = prepare_haproxy(
            settings, sockets, stack, max_connections_per_address=max_connections_per_address
        )
        gateway, join_address = stack.enter_context(
            running_gateway(
                gateway_settings,
                on_fault=events.on_fault,
                node_ip=None if is_embedded else deployment.node_ip(),
            )
        )
        deployment.prepare_environment(settings)
        takes_jobs = bool(parsed.batch_outputs)
        stack.enter_context(
            job_session(settings, address=cluster, verbose=verbose, with_job_server=takes_jobs)
        )
        if is_embedded:
            stack.enter_context(events.watching_ray())
        else:
            stack.callback(deployment.delete)  # however the command ends

        # run
        with console.status("Starting; the models are loaded and checked …"):
            deployment.deploy(parsed, access, join_address)
            deployment.require_joined(gateway)
        report(address, settings, database, console)
        for _ in events.reload_requests():
            reload(config, fields, access, join_address, console)
        console.note("Stopping; admitted requests are finished …")
        if is_embedded:
            deployment.shut_down()


# --- run --------------------------------------------------------------------------------------


def reload(
    location: str | None,
    fields: Mapping[str, Any],
    access: Access,
    address: GatewayAddress,
    console: Console,
) -> None:
    """Read the configuration again and replace the replicas; on an error they stay as they are."""
    try:
        deployment.deploy(read_spec(ServiceConfig, fields, file=location), access, address)
    except EaglerayError as error:
        console.warn(f"The service continues unchanged: {error}")
    else:
        console.note("The configuration was read again, and the replicas are new.")


# --- report -----------------------------------------------------------------------------------


def report(
    address: ListenAddress, settings: Settings, database: OpenDatabase, console: Console
) -> None:
    """Print where the service is reached, and who may use it."""
    names = Applications(database, actor=settings.actor).names()
    if console.for_scripts:
        console.emit_line(
            {"url": address.url, "grpc_port": address.grpc_port, "applications": names}
        )
        return
    console.say(f"Serving on {address.url} (page), {address.url}/docs (API documentation).")
    if address.grpc_port:
        console.say(f"gRPC on port {address.grpc_port}.")
    console.say(f"Requests and events are logged in {settings.service_logs}.")
    if names:
        console.say(f"Callers need the key of an application: {', '.join(names)}.")
        console.say("New and revoked keys take effect within seconds.")
    else:
        console.say(
            "There is no application, so only callers on this machine are admitted, without a key. "
            "Keys are required within seconds of `eagleray apps create NAME`."
        )


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
