"""HTTP routes that describe models: labels, versions, routes, and which versions serve now."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from eagleray.core.errors import EaglerayError
from eagleray.registry.registry import ModelVersion
from eagleray.serve.http.guard import CLIENT
from eagleray.serve.http.schemas import (
    LabelsResponse,
    ModelResponse,
    ModelsResponse,
    ShadowResponse,
    VersionsResponse,
    refusals,
)
from eagleray.serving.problems import NotFoundError
from eagleray.serving.service import ImageService
from eagleray.serving.versions.routing import Role, Via

__all__ = ["model_routes"]

log = logging.getLogger(__name__)


def model_routes(service: ImageService) -> APIRouter:
    """Return the routes that describe models."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get(
        "",
        response_model=ModelsResponse,
        responses=refusals(401),
        summary="All models, with the version that serves each now.",
    )
    async def list_models() -> Response:
        return JSONResponse(
            {"models": [_brief(service, name) for name in sorted(service.snapshot.aliases)]}
        )

    @router.get(
        "/{name}",
        response_model=ModelResponse,
        responses=refusals(401, 404),
        summary="One model: its routes, its versions in memory, its contract.",
    )
    async def describe(request: Request, name: str) -> Response:
        service.snapshot.require_model(name)
        application = request.scope[CLIENT]["application"]
        usage = await _usage(service, name, application)
        return JSONResponse({**_describe(service, name, application), "usage": usage})

    @router.get(
        "/{name}/labels",
        response_model=LabelsResponse,
        responses=refusals(401, 404, 503),
        summary="Labels, attributes and contract of the version that serves by default.",
    )
    async def labels(name: str) -> Response:
        loaded = await service.version_of(name)
        manifest = loaded.manifest
        body = {"model": name, "version": loaded.version, "task": manifest.task.name}
        return JSONResponse(
            {
                **body,
                "labels": list(manifest.task.labels),
                "positive": manifest.task.positive,
                "hierarchy": manifest.hierarchy,
                "attributes": [one.model_dump(mode="json") for one in manifest.attributes],
                "contract_digest": manifest.contract_digest,
                "contract": manifest.contract.model_dump(mode="json"),
            }
        )

    @router.get(
        "/{name}/versions",
        response_model=VersionsResponse,
        responses=refusals(401, 404, 503),
        summary="All registered versions, newest first.",
    )
    async def versions(name: str) -> Response:
        service.snapshot.require_model(name)
        found = await service.lookups.run(service.registry.versions, name)
        return JSONResponse({"model": name, "versions": [_version(item) for item in found]})

    @router.get(
        "/{name}/shadow",
        response_model=ShadowResponse,
        responses=refusals(401, 404),
        summary="How a shadow's predictions compare with those returned.",
    )
    async def shadow(name: str) -> Response:
        service.snapshot.require_model(name)
        comparison = service.shadows.comparisons.get(name)
        if comparison is None:
            raise NotFoundError(
                f"No shadow of model {name!r} has got a request in this replica; "
                f"`eagleray models shadow {name} VERSION` sets one."
            )
        return JSONResponse(
            {
                "model": name,
                "same": comparison.same,
                "different": comparison.different,
                "skipped": comparison.skipped,
                "examples": [dataclasses.asdict(item) for item in comparison.examples],
            }
        )

    return router


def _brief(service: ImageService, name: str) -> dict[str, Any]:
    serving = service.model_pool.serving(Role(name, Via.DEFAULT))
    return {"name": name, "serving": serving, "aliases": dict(service.snapshot.aliases[name])}


async def _usage(service: ImageService, name: str, application: str) -> list[dict[str, Any]] | None:
    """Return the caller's recent usage; None if the database does not answer."""
    try:
        used = await service.lookups.run(service.usage.recent, model=name, application=application)
    except EaglerayError as error:
        log.warning("the usage is left out: %s", error)
        return None
    return [item.as_json() for item in used]


def _describe(service: ImageService, name: str, application: str) -> dict[str, Any]:
    """Describe a model, without the pins of other applications."""
    snapshot, pool = service.snapshot, service.model_pool
    roles = []
    for role, target in snapshot.roles[name].items():
        if role.via is Via.PINNED and role.name != application:
            continue
        wanted = snapshot.version(name, target)
        roles.append(
            {
                "via": role.via,
                "application": role.name or None,
                "target": target,
                "wanted": wanted,
                "serving": pool.serving(role),
                "fault": None if wanted is None else pool.fault(name, wanted),
            }
        )
    reports = [
        dataclasses.asdict(item) | {"roles": _visible(item.roles, application)}
        for item in pool.reports()
        if item.model == name
    ]
    return {
        **_brief(service, name),
        "route": dataclasses.asdict(snapshot.route(name)),
        "roles": roles,
        "in_memory": reports,
    }


def _visible(roles: Sequence[Role], application: str) -> list[str]:
    """Return the roles as text, without the names of other applications."""
    return [
        role.via.value if role.via is Via.PINNED and role.name != application else role.description
        for role in roles
    ]


def _version(item: ModelVersion) -> dict[str, Any]:
    return {
        "version": item.version,
        "aliases": list(item.aliases),
        "created": item.created,
        "task": item.task,
        "architecture": item.architecture,
        "metrics": dict(item.metrics),
        "package_digest": item.digest,
    }
