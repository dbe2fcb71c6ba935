"""Liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, PlainTextResponse, Response

from eagleray.serve.http.documents import LiveAnswer, ReadyAnswer, refusals
from eagleray.serving.service import ImageService
from eagleray.serving.telemetry import CONTENT_TYPE

__all__ = ["health_routes"]


def health_routes(service: ImageService) -> APIRouter:
    """Return the routes for those who watch the service."""
    router = APIRouter(tags=["health"])

    @router.get(
        "/live", response_model=LiveAnswer, summary="Whether the process answers; needs no key."
    )
    async def live() -> Response:
        return JSONResponse({"live": True})

    @router.get(
        "/ready",
        response_model=ReadyAnswer,
        responses=refusals(401, 503),
        summary="Whether every kept model has a version that is healthy.",
    )
    async def ready() -> Response:
        service.require_ready()
        return JSONResponse({"ready": True})

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=refusals(401),
        summary="Counters and times of all replicas, for Prometheus.",
    )
    async def metrics() -> Response:
        return Response(await service.metrics(), media_type=CONTENT_TYPE)

    return router
