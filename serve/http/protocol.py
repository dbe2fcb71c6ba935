"""HTTP routes of the Open Inference Protocol, version 2, with its binary extension."""

from __future__ import annotations

import time
from importlib.metadata import version as version_of
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from eagleray.core.errors import InputError
from eagleray.serve.http.content_types import require_uncompressed
from eagleray.serve.http.guard import CLIENT, MAX_NUMBER_DIGITS, TRACE
from eagleray.serve.http.schemas import (
    InferResponse,
    LiveResponse,
    ModelMetadata,
    ModelReady,
    ReadyResponse,
    ServerMetadata,
    refusals,
)
from eagleray.serving import protocol
from eagleray.serving.prediction.requests import PredictRequest
from eagleray.serving.service import ImageService

__all__ = ["protocol_routes"]

_HEADER_LENGTH = "inference-header-content-length"
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "inputs": {"type": "array", "items": {"type": "object"}},
                    "outputs": {"type": "array", "items": {"type": "object"}},
                },
                "required": ["inputs"],
            }
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}

_RAW = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": _RAW},
    **refusals(400, 401, 404, 408, 413, 415, 429, 503, 504),
}


def protocol_routes(service: ImageService) -> APIRouter:
    """Return the routes of the protocol."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @router.get("", response_model=ServerMetadata, responses=refusals(401), summary="The server.")
    async def describe_server() -> Response:
        extensions = ["binary_tensor_data", "classification"]
        return JSONResponse(
            {"name": "eagleray", "version": version_of("eagleray"), "extensions": extensions}
        )

    @router.get(
        "/health/live",
        response_model=LiveResponse,
        summary="Whether the process is alive; needs no key.",
    )
    async def live() -> Response:
        return JSONResponse({"live": True})

    @router.get(
        "/health/ready",
        response_model=ReadyResponse,
        responses=refusals(401, 503),
        summary="Whether every warm model has a healthy version.",
    )
    async def ready() -> Response:
        service.require_ready()
        return JSONResponse({"ready": True})

    @router.get(
        "/models/{name}",
        response_model=ModelMetadata,
        responses=refusals(401, 404, 503),
        summary="A model's inputs and outputs.",
    )
    @router.get(
        "/models/{name}/versions/{version}",
        response_model=ModelMetadata,
        responses=refusals(401, 404, 503),
        summary="A version's inputs and outputs.",
    )
    async def describe(name: str, version: str | None = None) -> Response:
        loaded = await service.version_of(name, version)
        found = await service.lookups.run(service.registry.versions, name)
        numbers = sorted(item.version for item in found)
        return JSONResponse(protocol.model_metadata(name, numbers, loaded.manifest))

    @router.get(
        "/models/{name}/ready",
        response_model=ModelReady,
        responses=refusals(401, 404, 503),
        summary="Whether a model is ready.",
    )
    @router.get(
        "/models/{name}/versions/{version}/ready",
        response_model=ModelReady,
        responses=refusals(401, 404, 503),
        summary="Whether a version is ready.",
    )
    async def model_ready(name: str, version: str | None = None) -> Response:
        await service.version_of(name, version)
        return JSONResponse({"name": name, "ready": True})

    @router.post(
        "/models/{name}/infer",
        response_model=InferResponse,
        responses=_RESPONSES,
        openapi_extra={"requestBody": _BODY},
        summary="Predict encoded or decoded images.",
    )
    @router.post(
        "/models/{name}/versions/{version}/infer",
        response_model=InferResponse,
        responses=_RESPONSES,
        openapi_extra={"requestBody": _BODY},
        summary="Predict encoded or decoded images by one version.",
    )
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        require_uncompressed(request)
        parsed = protocol.parse_rest_request(await request.body(), _header_length(request))
        return await _infer(service, request, name, version, parsed)

    return router


def _header_length(request: Request) -> int | None:
    text = request.headers.get(_HEADER_LENGTH)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > MAX_NUMBER_DIGITS:
        raise InputError("Inference-Header-Content-Length must be a number of bytes.")
    return int(text)


async def _infer(
    service: ImageService,
    request: Request,
    name: str,
    version: str | None,
    parsed: protocol.InferRequest,
) -> Response:
    client = request.scope[CLIENT]
    client["model"] = name if name in service.snapshot.aliases else ""
    result, outputs = await service.infer(
        parsed,
        PredictRequest(
            model=name,
            images=(),
            application=client["application"],
            request_id=client["request_id"],
            deadline=time.monotonic() + service.config.timeout_s,
            version=version,
            trace=request.scope[TRACE],
        ),
    )
    client["version"] = str(result.loaded.version)
    body, length = protocol.to_rest_response(
        outputs,
        model=name,
        version=result.loaded.version,
        request_id=parsed.id or client["request_id"],
        parameters={
            "contract_digest": result.loaded.manifest.contract_digest,
            "engine": result.loaded.predictor.engine_name,
        },
    )
    if length is None:
        return Response(body, media_type="application/json")
    return Response(
        body, media_type="application/octet-stream", headers={_HEADER_LENGTH: str(length)}
    )
