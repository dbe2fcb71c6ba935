"""The Ray Serve application.

    serve deploy serve/config.yaml                       on a cluster
    serve run eagleray.serve.app:build max_body_mb=16    on a Ray that runs

`eagleray serve` starts it in a Ray of its own.

A replica holds all the models that are needed, so a request takes one hop from the proxy to the
model. Ray Serve starts, watches and replaces replicas, and spreads requests over them; which
version answers is decided inside, where a change takes no restart.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from eagleray.machine import num_usable_cores
from eagleray.serving.config import ServiceConfig, make_config

__all__ = ["APP_NAME", "ImageServer", "build"]

APP_NAME = "eagleray"

_MOST_ONGOING = 10_000  # the service has limits of its own, and refuses in milliseconds
_SURGE = 25  # percent of new replicas, but at least one, that start before old ones end
_GRACE = 20.0  # seconds in which a replica that is to end answers what it has let in


@serve.ingress()
class ImageServer:
    """A replica: an `ImageService`, and its interfaces.

    Args:
        config: As JSON.
        num_cores: That it may use.
    """

    def __init__(self, config: str, num_cores: int) -> None:
        from eagleray.models.registry import Registry
        from eagleray.serve.grpc import GrpcInterface
        from eagleray.serving.logs import log_to_file
        from eagleray.serving.service import ImageService

        registry = Registry()
        name = serve.get_replica_context().replica_id.unique_id
        log_to_file(registry.settings.service_logs / f"replica-{name}.jsonl")
        parsed = ServiceConfig.model_validate_json(config)
        self._service = ImageService(
            registry,
            parsed,
            device="cuda" if parsed.gpus_per_replica else "cpu",
            num_cores=num_cores,
            replica=name,
        )
        self._grpc = GrpcInterface(self._service)

    def __serve_build_asgi_app__(self) -> Any:
        """Return the HTTP application; Ray Serve calls this once."""
        from eagleray.serve.http import build_http
        from eagleray.serve.launcher import RayJobs

        return build_http(self._service, RayJobs(), marks_answers=False)

    async def ServerLive(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802
        """Answer the protocol's call of this name, as the next methods do theirs."""
        return await self._grpc.call("ServerLive", request, grpc_context)

    async def ServerReady(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802, D102
        return await self._grpc.call("ServerReady", request, grpc_context)

    async def ModelReady(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802, D102
        return await self._grpc.call("ModelReady", request, grpc_context)

    async def ServerMetadata(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802, D102
        return await self._grpc.call("ServerMetadata", request, grpc_context)

    async def ModelMetadata(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802, D102
        return await self._grpc.call("ModelMetadata", request, grpc_context)

    async def ModelInfer(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802, D102
        return await self._grpc.call("ModelInfer", request, grpc_context)

    async def check_health(self) -> None:
        """Tell Ray Serve whether this replica is to be replaced."""
        self._service.require_alive()


def build(arguments: dict[str, Any]) -> Application:
    """Build the application from the fields of a `ServiceConfig`.

    Raises:
        InputError: A field is not valid.
    """
    config = make_config(arguments)
    num_cores = max(1, num_usable_cores() // config.replicas)
    deployment = serve.deployment(
        ImageServer,
        name="ImageServer",
        num_replicas=config.replicas,
        max_ongoing_requests=_MOST_ONGOING,
        max_surge_percent=_SURGE,
        graceful_shutdown_timeout_s=_GRACE,
        health_check_period_s=2,
        ray_actor_options={
            # A service shares its machine with nothing that Ray schedules by cores.
            "num_cpus": 0 if config.gpus_per_replica == 0 else 1,
            "num_gpus": config.gpus_per_replica,
        },
    )
    return deployment.bind(config.model_dump_json(), num_cores)
