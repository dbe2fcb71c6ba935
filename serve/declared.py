"""Builds the Ray Serve application of a service that is declared in a Serve configuration file.

KubeRay's RayService and `serve deploy` keep such an application running. Its replicas join the
gateway that `eagleray gateway` runs, with the secret in `EAGLERAY_GATEWAY_SECRET`:

    proxy_location: Disabled
    applications:
      - name: eagleray
        import_path: eagleray.serve.declared:build
        route_prefix: null
        args:
          gateway: eagleray-gateway:8002
          cores_per_replica: 4
          service: {replicas: 2}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import field_validator
from ray.serve import Application

from eagleray.core.settings import read_settings
from eagleray.core.spec import Spec, spec_field
from eagleray.database.store import open_database
from eagleray.registry.registry import Registry
from eagleray.serve.gateway.join import GatewayAddress, require_gateway_secret
from eagleray.serving.callers.admission import Access
from eagleray.serving.callers.applications import Applications
from eagleray.serving.config import ServiceConfig

__all__ = ["DeclaredService", "build"]

_PANEL = "Cluster"


class DeclaredService(Spec):
    """The arguments of the application in a Serve configuration file."""

    gateway: str = spec_field(..., _PANEL, "HOST:PORT at which replicas join the gateway.")
    cores_per_replica: int = spec_field(
        1, _PANEL, "Number of cores that Ray reserves for each replica.", ge=1, le=1024
    )
    service: ServiceConfig = spec_field(
        ServiceConfig(), _PANEL, "The fields of `eagleray serve --config`."
    )

    @field_validator("gateway")
    @classmethod
    def _is_host_and_port(cls, gateway: str) -> str:
        host, _, port = gateway.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"{gateway!r} must be HOST:PORT, such as eagleray-gateway:8002")
        return gateway


def build(args: Mapping[str, Any]) -> Application:
    """Build the application. Callers always need keys, also before the first key exists.

    Args:
        args: The fields of a `DeclaredService`.

    Raises:
        InputError: If a field is invalid, or the gateway's secret is not set.
        OutageError: If the registry or the database does not answer.
        UnknownNameError: If a model or a field does not exist.
    """
    from eagleray.serve import app
    from eagleray.serve.run import require_names

    declared = DeclaredService.make(dict(args))
    settings = read_settings()
    secret = require_gateway_secret(settings)
    database = open_database(settings)
    callers = Applications(database, actor="").read()
    access = Access(
        keyless=False, database=database.read_identity(), last_change=callers.last_change
    )
    require_names(declared.service, Registry(settings))
    return app.build(
        declared.service,
        access,
        GatewayAddress(declared.gateway, folder=None, secret=secret),
        reserved_cores=declared.cores_per_replica,
    )
