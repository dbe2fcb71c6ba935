"""The Open Inference Protocol, version 2, over REST with its binary extension."""

from __future__ import annotations

import time
from importlib.metadata import version as version_of
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from eagleray.core.errors import InputError
from eagleray.serve.http.bodies import require_plain
from eagleray.serve.http.documents import (
    InferAnswer,
    LiveAnswer,
    ModelMetadata,
    ModelReady,
    ReadyAnswer,
    ServerMetadata,
    refusals,
)
from eagleray.serve.http.guard import CLIENT, LONGEST_NUMBER, TRACE
from eagleray.serving import protocol
from eagleray.serving.requests import PredictRequest
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
_ANSWERS: dict[int | str, dict[str, Any]] = {
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
        response_model=LiveAnswer,
        summary="Whether the process answers; needs no key.",
    )
    async def live() -> Response:
        return JSONResponse({"live": True})

    @router.get(
        "/health/ready",
        response_model=ReadyAnswer,
        responses=refusals(401, 503),
        summary="Whether every kept model has a healthy version.",
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
        return JSONResponse(protocol.metadata(name, numbers, loaded.manifest))

    @router.get(
        "/models/{name}/ready",
        response_model=ModelReady,
        responses=refusals(401, 404, 503),
        summary="Whether a model answers.",
    )
    @router.get(
        "/models/{name}/versions/{version}/ready",
        response_model=ModelReady,
        responses=refusals(401, 404, 503),
        summary="Whether a version answers.",
    )
    async def model_ready(name: str, version: str | None = None) -> Response:
        await service.version_of(name, version)
        return JSONResponse({"name": name, "ready": True})

    @router.post(
        "/models/{name}/infer",
        response_model=InferAnswer,
        responses=_ANSWERS,
        openapi_extra={"requestBody": _BODY},
        summary="Predict encoded or decoded images.",
    )
    @router.post(
        "/models/{name}/versions/{version}/infer",
        response_model=InferAnswer,
        responses=_ANSWERS,
        openapi_extra={"requestBody": _BODY},
        summary="Predict encoded or decoded images by one version.",
    )
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        require_plain(request)
        parsed = protocol.parse_http(await request.body(), _header_length(request))
        return await _infer(service, request, name, version, parsed)

    return router


def _header_length(request: Request) -> int | None:
    text = request.headers.get(_HEADER_LENGTH)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > LONGEST_NUMBER:
        raise InputError("Inference-Header-Content-Length is no number of bytes.")
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
    answers, outputs = await service.infer(
        parsed,
        PredictRequest(
            model=name,
            images=(),
            application=client["application"],
            request_id=client["request_id"],
            deadline=time.monotonic() + service.config.timeout_s,
            asked=version,
            trace=request.scope[TRACE],
        ),
    )
    client["version"] = str(answers.loaded.version)
    body, length = protocol.as_json(
        outputs,
        model=name,
        version=answers.loaded.version,
        request_id=parsed.id or client["request_id"],
        parameters={"contract_digest": answers.loaded.manifest.contract_digest},
    )
    if length is None:
        return Response(body, media_type="application/json")
    return Response(
        body, media_type="application/octet-stream", headers={_HEADER_LENGTH: str(length)}
    )
