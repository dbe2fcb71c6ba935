"""The Ray Serve application: a deployment of replicas.

A replica holds all models that are needed, so a request takes one hop from the gateway to the
model. Ray Serve starts, monitors and replaces replicas. The gateway chooses the replica of a
request, and the replica chooses the version, so a change of version needs no restart.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ray import serve
from ray.serve import Application

from eagleray.core.ray_private import close_replica_port
from eagleray.core.system import num_usable_cores
from eagleray.serve.gateway.join import GatewayAddress
from eagleray.serving.callers.admission import Access
from eagleray.serving.config import ServiceConfig

__all__ = ["APP_NAME", "ImageServer", "build"]

APP_NAME = "eagleray"

_SURGE = 25  # percent of new replicas, but at least one, that start before old ones end
_SHUTDOWN_SECONDS = 30.0  # for a replica to finish the requests that it has admitted


class ImageServer:
    """A replica: an `ImageService` and its servers.

    Args:
        config: Fields of a `ServiceConfig`.
        access: Fields of an `Access`.
        gateway: Fields of a `GatewayAddress`.
        num_cores: Number of cores that it may use.
    """

    async def __init__(  # type: ignore[misc]
        self,
        config: dict[str, Any],
        access: dict[str, Any],
        gateway: dict[str, Any],
        num_cores: int,
    ) -> None:
        from eagleray.registry.registry import Registry
        from eagleray.serve.http import build_http
        from eagleray.serve.launcher import RayJobs
        from eagleray.serve.replica_servers import ReplicaServers
        from eagleray.serving.logs import log_to_file
        from eagleray.serving.service import ImageService

        close_replica_port()
        registry = Registry()
        name = serve.get_replica_context().replica_id.unique_id
        log_to_file(registry.settings.service_logs / f"replica-{name}.jsonl")
        parsed = ServiceConfig.model_validate(config)
        self._service = ImageService(
            registry,
            parsed,
            device="cuda" if parsed.gpus_per_replica else "cpu",
            num_cores=num_cores,
            replica=name,
            access=Access(**access),
        )
        self._servers = ReplicaServers(
            build_http(self._service, RayJobs()), self._service, GatewayAddress(**gateway), name
        )
        await self._servers.start()

    async def check_health(self) -> None:
        """Check the replica for Ray Serve, which replaces it if this raises."""
        self._service.require_alive()

    async def __del__(self) -> None:
        """Stop; Ray Serve awaits this before it ends a replica."""
        await self._servers.stop()


def build(
    config: ServiceConfig,
    access: Access,
    gateway: GatewayAddress,
    *,
    reserved_cores: int | None = None,
) -> Application:
    """Build the application.

    Args:
        config: The configuration of the service.
        access: The access policy.
        gateway: Address of the gateway, where replicas join.
        reserved_cores: Number of cores that Ray reserves for each replica, on whichever node has
            them. None divides the cores of this machine among the replicas, and batch jobs, which
            Ray schedules by cores, share them.
    """
    num_cores = reserved_cores or max(1, num_usable_cores() // config.replicas)
    deployment = serve.deployment(
        ImageServer,
        name="ImageServer",
        num_replicas=config.replicas,
        max_surge_percent=_SURGE,
        graceful_shutdown_timeout_s=_SHUTDOWN_SECONDS,
        health_check_period_s=2,
        ray_actor_options={
            "num_cpus": reserved_cores or (0 if config.gpus_per_replica == 0 else 1),
            "num_gpus": config.gpus_per_replica,
        },
    )
    return deployment.bind(
        config.model_dump(mode="json"),
        dataclasses.asdict(access),
        gateway.as_fields(),
        num_cores,
    )
