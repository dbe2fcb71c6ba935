"""HTTP routes for liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, PlainTextResponse, Response

from eagleray.serve.http.schemas import LiveResponse, ReadyResponse, refusals
from eagleray.serving.service import ImageService
from eagleray.serving.telemetry import CONTENT_TYPE

__all__ = ["health_routes"]


def health_routes(service: ImageService) -> APIRouter:
    """Return the routes for health checks and monitoring."""
    router = APIRouter(tags=["health"])

    @router.get(
        "/live", response_model=LiveResponse, summary="Whether the process is alive; needs no key."
    )
    async def live() -> Response:
        return JSONResponse({"live": True})

    @router.get(
        "/ready",
        response_model=ReadyResponse,
        responses=refusals(401, 503),
        summary="Whether every warm model has a healthy version.",
    )
    async def ready() -> Response:
        service.require_ready()
        return JSONResponse({"ready": True})

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=refusals(401),
        summary="Metrics of all replicas, for Prometheus.",
    )
    async def metrics() -> Response:
        return Response(await service.metrics(), media_type=CONTENT_TYPE)

    return router
