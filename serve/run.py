"""Serve models, on a Ray of the command's own or on a cluster.

    python -m eagleray.serve.run digits --port 8000
    eagleray serve
    eagleray serve digits,flowers --replicas 2
    eagleray serve --config service.yaml --host 0.0.0.0
    eagleray serve digits --cluster auto

SIGHUP has it read its configuration again: new replicas take the places of the old ones, one by
one, and no request is lost.

The command is the gateway of the service: it holds the sockets that callers connect to, and keeps
HAProxy running before the replicas. It reads from top to bottom: the request, start, the end, and
last the words of the command line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
from collections.abc import Iterator, Mapping
from typing import Annotated

import typer

from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import (
    ClusterOption,
    JsonOption,
    VerboseOption,
    job_session,
    job_settings,
    run_command,
)
from eagleray.cli.options import with_spec_options
from eagleray.core.errors import EaglerayError, JobFailedError
from eagleray.core.ray_errors import read_failure, read_failure_text
from eagleray.core.settings import Settings
from eagleray.database.store import OpenDatabase, open_database
from eagleray.registry.registry import Registry
from eagleray.serve.gateway.gateway import Gateway, running_gateway
from eagleray.serve.gateway.haproxy import Limits
from eagleray.serve.gateway.join import GatewayAddress
from eagleray.serve.gateway.sockets import Place, open_doors, private_folder
from eagleray.serve.ray_watch import OwnRay, watched_ray
from eagleray.serving.admission import Access, settle_access
from eagleray.serving.applications import Applications
from eagleray.serving.config import ServiceConfig, make_config, read_config
from eagleray.serving.logs import log_event, log_to_file
from eagleray.serving.routing import Snapshot

_SECONDS_TO_JOIN = 60.0  # of a replica that is ready, until HAProxy knows it


# --- request ----------------------------------------------------------------------------------


def read_request(location: str | None, fields: Mapping[str, str]) -> ServiceConfig:
    """Return what is asked: the fields of a file, if there is one, and those that win over them.

    Raises:
        InputError: It cannot be read, or is not valid.
    """
    return make_config({**(read_config(location) if location else {}), **fields})


def require_models(config: ServiceConfig, registry: Registry) -> None:
    """Refuse models that are not registered, before anything is started for them.

    Raises:
        UnknownNameError: With the nearest names.
        OutageError: The registry does not answer.
    """
    if config.models:
        aliases, _ = registry.aliases()
        for model in config.models:
            Snapshot(aliases).require_model(model)


# --- start ------------------------------------------------------------------------------------


def prepare_environment(settings: Settings) -> None:
    """Set what Ray Serve reads from the environment when it is imported, here and in replicas."""
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    # Replicas listen for the gateway alone, on sockets of their own.
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    os.environ["RAY_SERVE_ENABLE_DIRECT_INGRESS"] = "0"
    # Replicas may stand in another folder than the command.
    os.environ["EAGLERAY_HOME"] = str(settings.home_folder)


def start(config: ServiceConfig, access: Access, address: GatewayAddress) -> None:
    """Start the replicas, and return when they are ready.

    Raises:
        JobFailedError: They do not become ready.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import ProxyLocation

    from eagleray.serve.app import APP_NAME, build

    try:
        serve.start(proxy_location=ProxyLocation.Disabled)
        serve.run(build(config, access, address), name=APP_NAME, route_prefix=None, blocking=False)
    except TimeoutError as error:
        raise JobFailedError(
            f"The service does not start: Ray Serve gave up waiting ({error}); the machine may be "
            "too busy, so try again when it has less to do."
        ) from None
    except RuntimeError as error:
        message = _why_it_does_not_start(APP_NAME) or str(error).splitlines()[0].rstrip(".")
        raise JobFailedError(f"The service does not start: {message}.") from None
    except RayError as error:  # the controller has died
        message = read_failure(error).message
        raise JobFailedError(f"The service does not start: {message}.") from None


def _why_it_does_not_start(name: str) -> str:
    """Return why replicas failed, as Ray Serve tells; nothing where it does not."""
    from ray import serve

    status = serve.status().applications.get(name)
    messages = [] if status is None else [status.message]
    messages += [item.message for item in (status.deployments.values() if status else ())]
    text = "\n".join(message for message in messages if "Error: " in message)
    return read_failure_text(text).message if text else ""


def require_joined(gateway: Gateway) -> None:
    """Wait until the first replica answers.

    Raises:
        JobFailedError: None does.
    """
    if not gateway.wait_for_replica(_SECONDS_TO_JOIN):
        raise JobFailedError(
            "The service does not start: no replica reaches the gateway; their logs are beside "
            "this command's."
        )


# --- until the end ----------------------------------------------------------------------------


class Happenings:
    """What happens to a running service: signals, and what its parts tell.

    Args:
        console: That tells people.

    Attributes:
        own: The Ray that this command has started; None while there is none.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self.own: OwnRay | None = None
        self._end_of_ray = JobFailedError("Ray ended.")
        self._heard: queue.SimpleQueue[int | EaglerayError] = queue.SimpleQueue()

    def tell(self, sentence: str) -> None:
        """Tell of a fault of a part, on the terminal and in the log."""
        if self.own is not None and self.own.ended() is not None:
            return  # what follows from the end of Ray; that itself is told as the command ends
        self._console.warn(sentence)
        log_event(logging.WARNING, what="fault", detail=sentence)

    def ray_ended(self, own: OwnRay, what: str) -> None:
        """End the service, for Ray has ended."""
        own.kill()
        self._end_of_ray = JobFailedError(
            f"{what} ended, and with it the service: no replica could be replaced any more. "
            "Start the command again."
        )
        self._heard.put(self._end_of_ray)

    def end_at_once(self) -> None:
        """End the process, whose main thread waits for a Ray that has ended."""
        try:
            with command_errors():
                raise self._end_of_ray
        except SystemExit as end:
            os._exit(int(str(end.code)))

    def requests_to_reload(self) -> Iterator[None]:
        """Yield for each SIGHUP, until the command is ended.

        Raises:
            JobFailedError: Ray has ended.
        """
        for wanted in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(wanted, lambda number, _: self._heard.put(number))
        while (heard := self._heard.get()) == signal.SIGHUP:
            yield
        if isinstance(heard, EaglerayError):
            raise heard


def start_anew(
    location: str | None,
    fields: Mapping[str, str],
    access: Access,
    address: GatewayAddress,
    console: Console,
) -> None:
    """Read the configuration again and replace the replicas; a fault leaves them as they are."""
    try:
        start(read_request(location, fields), access, address)
    except EaglerayError as error:
        console.warn(f"The service goes on as it was: {error}")
    else:
        console.note("The configuration was read again, and the replicas are new.")


# --- the command line -------------------------------------------------------------------------


@with_spec_options(ServiceConfig, argument="models")
def main(
    fields: dict[str, str],
    config: Annotated[
        str | None, typer.Option(help="YAML file of the fields below; flags win.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; 0.0.0.0 for every IPv4 address, :: for all."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of HTTP.", min=1, max=65535)] = 8000,
    grpc_port: Annotated[
        int, typer.Option(help="Port of gRPC; 0 for none.", min=0, max=65535)
    ] = 8001,
    connections_per_address: Annotated[
        int,
        typer.Option(help="Connections that one address may have at a time.", min=1, max=100_000),
    ] = 1000,
    cluster: ClusterOption = None,
    verbose: VerboseOption = False,
    json_output: JsonOption = False,
) -> None:
    """Answer requests for registered models, always in the right version."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        parsed = read_request(config, fields)
        place = Place(host, port, grpc_port)
        slots = parsed.batches_at_once if parsed.batch_outputs else 0
        own = cluster is None and settings.ray_address is None  # Ray, which this command starts
        happenings = Happenings(console)
        with contextlib.ExitStack() as stack:
            doors = stack.enter_context(open_doors(place))
            database = open_database(settings)
            access = settle_access(database, host_is_loopback=doors.are_loopback)
            require_models(parsed, Registry(settings))
            log_to_file(settings.service_logs / "gateway.jsonl")
            gateway, address = stack.enter_context(
                running_gateway(
                    stack.enter_context(private_folder()),
                    doors,
                    limits=Limits.of_this_machine(connections_per_address),
                    log=settings.service_logs / "haproxy.log",
                    tell=happenings.tell,
                    node_ip=None if own else node_ip(),
                )
            )
            prepare_environment(settings)
            stack.enter_context(
                job_session(settings, address=cluster, verbose=verbose, batches_at_once=slots)
            )
            if own:
                watch = watched_ray(happenings.ray_ended, happenings.end_at_once)
                happenings.own = stack.enter_context(watch)
            else:
                stack.callback(end_on_cluster)  # whatever ends the command
            with console.status("Starting; the models are loaded and checked …"):
                start(parsed, access, address)
                require_joined(gateway)
            report(place, settings, database, console)
            for _ in happenings.requests_to_reload():
                start_anew(config, fields, access, address, console)
            console.note("Ending; what was let in is answered …")
            if own:
                end_own()


def node_ip() -> str:
    """Return the address at which the nodes of a cluster reach this machine."""
    import ray

    return str(ray.util.get_node_ip_address())


def end_own() -> None:
    """End the replicas on a Ray of the command's own; what they have let in is answered."""
    from ray import serve

    serve.shutdown()


def end_on_cluster() -> None:
    """End the replicas on a cluster, where there may be other applications."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from eagleray.serve.app import APP_NAME

    with contextlib.suppress(RayServeException):  # Ray Serve was not started yet
        serve.delete(APP_NAME)


def report(place: Place, settings: Settings, database: OpenDatabase, console: Console) -> None:
    """Say where the service is, and who may ask it."""
    names = Applications(database, who=settings.actor).names()
    if console.for_scripts:
        console.emit_line({"url": place.url, "grpc_port": place.grpc_port, "applications": names})
        return
    console.say(f"Serving on {place.url} (its page), {place.url}/docs (its interface).")
    if place.grpc_port:
        console.say(f"gRPC on port {place.grpc_port}.")
    console.say(f"Requests and events are logged in {settings.service_logs}.")
    if names:
        console.say(f"Callers need the key of an application: {', '.join(names)}.")
    else:
        console.say("No application is configured, so only this machine is let in, without a key.")


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
