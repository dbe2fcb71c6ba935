"""Deploys the application on Ray Serve, replaces its replicas, and removes it."""

from __future__ import annotations

import contextlib
import os

from eagleray.core.errors import JobFailedError
from eagleray.core.ray_errors import read_failure, read_failure_text
from eagleray.core.settings import Settings
from eagleray.serve.gateway.gateway import Gateway
from eagleray.serve.gateway.join import GatewayAddress
from eagleray.serving.callers.admission import Access
from eagleray.serving.config import ServiceConfig

__all__ = ["delete", "deploy", "node_ip", "prepare_environment", "require_joined", "shut_down"]

_SECONDS_TO_JOIN = 60.0  # from a replica that is ready until HAProxy routes requests to it


def prepare_environment(settings: Settings) -> None:
    """Set the variables that Ray Serve reads when it is imported, here and in replicas."""
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    # Replicas have their own servers, which listen for the gateway only.
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    os.environ["RAY_SERVE_ENABLE_DIRECT_INGRESS"] = "0"
    # Replicas may run in another folder than the command.
    os.environ["EAGLERAY_HOME"] = str(settings.home_folder)


def deploy(config: ServiceConfig, access: Access, address: GatewayAddress) -> None:
    """Start the replicas, or replace those that run, and return when they are ready.

    Raises:
        JobFailedError: If they do not become ready.
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
        message = _replica_error(APP_NAME) or str(error).splitlines()[0].rstrip(".")
        raise JobFailedError(f"The service does not start: {message}.") from None
    except RayError as error:  # the controller has died
        message = read_failure(error).message
        raise JobFailedError(f"The service does not start: {message}.") from None


def _replica_error(name: str) -> str:
    """Return the error of the replicas that failed; empty if Ray Serve reports none."""
    from ray import serve

    status = serve.status().applications.get(name)
    messages = [] if status is None else [status.message]
    messages += [item.message for item in (status.deployments.values() if status else ())]
    text = "\n".join(message for message in messages if "Error: " in message)
    return read_failure_text(text).message if text else ""


def require_joined(gateway: Gateway) -> None:
    """Wait until the first replica has joined the gateway.

    Raises:
        JobFailedError: If none does.
    """
    if not gateway.wait_for_replica(_SECONDS_TO_JOIN):
        raise JobFailedError(
            "The service does not start: no replica reaches the gateway; the logs of the replicas "
            "are beside that of this command."
        )


def node_ip() -> str:
    """Return the address at which the nodes of a cluster reach this machine."""
    import ray

    return str(ray.util.get_node_ip_address())


def shut_down() -> None:
    """End the replicas on an embedded Ray, after the requests that they have admitted."""
    from ray import serve

    serve.shutdown()


def delete() -> None:
    """End the replicas on a cluster, where other applications may run."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from eagleray.serve.app import APP_NAME

    with contextlib.suppress(RayServeException):  # Ray Serve has not started
        serve.delete(APP_NAME)
