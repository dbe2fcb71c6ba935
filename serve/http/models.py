"""What there is: models, their labels and versions, and which of them answer now."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from eagleray.errors import InputError
from eagleray.models.registry import ModelVersion
from eagleray.serving.routing import Role, Via, roles_of
from eagleray.serving.service import ImageService
from serve.http.documents import (
    LabelsAnswer,
    ModelAnswer,
    ModelsAnswer,
    ShadowAnswer,
    VersionsAnswer,
    refusals,
)

__all__ = ["model_routes"]


def model_routes(service: ImageService) -> APIRouter:
    """Return the routes that describe models."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get(
        "",
        response_model=ModelsAnswer,
        responses=refusals(401),
        summary="All models, with what answers for each now.",
    )
    async def list_models() -> Response:
        return JSONResponse(
            {"models": [_brief(service, name) for name in sorted(service.snapshot.aliases)]}
        )

    @router.get(
        "/{name}",
        response_model=ModelAnswer,
        responses=refusals(401, 404),
        summary="One model: its routes, its versions in memory, its contract.",
    )
    async def describe(name: str) -> Response:
        service.snapshot.require_model(name)
        return JSONResponse(_describe(service, name))

    @router.get(
        "/{name}/labels",
        response_model=LabelsAnswer,
        responses=refusals(401, 404, 503),
        summary="The labels of the version that answers by default.",
    )
    async def labels(name: str) -> Response:
        loaded = await service.version_of(name)
        manifest = loaded.manifest
        body = {"model": name, "version": loaded.version, "task": manifest.task.name}
        return JSONResponse(
            {
                **body,
                "labels": list(manifest.task.labels),
                "hierarchy": manifest.hierarchy,
                "contract_digest": manifest.contract_digest,
                "contract": manifest.contract.model_dump(mode="json"),
            }
        )

    @router.get(
        "/{name}/versions",
        response_model=VersionsAnswer,
        responses=refusals(401, 404),
        summary="All versions that are registered, newest first.",
    )
    async def versions(name: str) -> Response:
        service.snapshot.require_model(name)
        found = await asyncio.to_thread(service.registry.versions, name)
        return JSONResponse({"model": name, "versions": [_version(item) for item in found]})

    @router.get(
        "/{name}/shadow",
        response_model=ShadowAnswer,
        responses=refusals(400, 401, 404),
        summary="How a shadow's answers compare with those given.",
    )
    async def shadow(name: str) -> Response:
        service.snapshot.require_model(name)
        tally = service.shadows.get(name)
        if tally is None:
            raise InputError(f"No shadow of model {name!r} has answered in this replica.")
        return JSONResponse(
            {
                "model": name,
                "same": tally.same,
                "different": tally.different,
                "skipped": tally.skipped,
                "examples": [dataclasses.asdict(item) for item in tally.examples],
            }
        )

    return router


def _brief(service: ImageService, name: str) -> dict[str, Any]:
    serving = service.fleet.serving(Role(name, Via.DEFAULT))
    return {"name": name, "serving": serving, "aliases": dict(service.snapshot.aliases[name])}


def _describe(service: ImageService, name: str) -> dict[str, Any]:
    snapshot, fleet = service.snapshot, service.fleet
    roles = []
    for role, target in roles_of(snapshot, name):
        wanted = snapshot.version(name, target)
        roles.append(
            {
                "via": role.via,
                "application": role.name or None,
                "target": target,
                "wanted": wanted,
                "serving": fleet.serving(role),
                "fault": None if wanted is None else fleet.fault(name, wanted),
            }
        )
    reports = [dataclasses.asdict(item) for item in fleet.reports() if item.model == name]
    return {
        **_brief(service, name),
        "route": dataclasses.asdict(snapshot.route(name)),
        "roles": roles,
        "in_memory": reports,
    }


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
