"""Composes the HTTP application: routes, middleware and error handlers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from http import HTTPStatus
from importlib.metadata import version as version_of
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from eagleray.core.errors import EaglerayError
from eagleray.core.validation import describe_validation_fault
from eagleray.serve.http.batches import batch_routes
from eagleray.serve.http.bodies import JsonBody
from eagleray.serve.http.docs import docs_routes
from eagleray.serve.http.guard import GONE, Guard, problem_response, request_id_of
from eagleray.serve.http.health import health_routes
from eagleray.serve.http.jobs import job_routes
from eagleray.serve.http.models import model_routes
from eagleray.serve.http.normalize import METHOD, NormalizeRequests
from eagleray.serve.http.page import page_routes
from eagleray.serve.http.predict import predict_routes
from eagleray.serve.http.protocol import protocol_routes
from eagleray.serve.http.schemas import SECURITY, ProblemDocument
from eagleray.serving.batches import BatchBody
from eagleray.serving.jobs.body import JobBody
from eagleray.serving.jobs.launcher import Launcher
from eagleray.serving.jobs.starter import JobStarter
from eagleray.serving.problems import PROBLEM_TYPE, Problem, problem_from_error
from eagleray.serving.service import ImageService

__all__ = ["build_http"]

log = logging.getLogger(__name__)

_LOAD_SECONDS = 300.0  # maximum time to load the warm models

_PROBLEM_RESPONSE = {
    "description": "Any other refusal.",
    "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
}
_METHODS = ("GET", "POST", "DELETE")
_WITHOUT_KEY = ("/live", "/v2/health/live")


def build_http(service: ImageService, launcher: Launcher) -> FastAPI:
    """Return the application of a service, which starts and stops the service.

    Args:
        service: The service.
        launcher: Launcher of jobs.
    """
    app = FastAPI(
        title="Eagleray",
        summary="Image models, always in the right version.",
        version=version_of("eagleray"),
        docs_url=None,  # FastAPI's page loads external scripts; docs_routes does not
        redoc_url=None,
        redirect_slashes=False,  # NormalizeRequests has removed them
        lifespan=lambda _: _running(service),
        responses={"default": _PROBLEM_RESPONSE},
    )
    for routes in (predict_routes, model_routes, protocol_routes, health_routes, page_routes):
        app.include_router(routes(service))
    app.include_router(docs_routes())
    starter = JobStarter(
        service.registry.settings, service.config, launcher, database=lambda: service.database
    )
    app.include_router(batch_routes(service, starter))
    app.include_router(job_routes(service, starter))
    app.add_middleware(Guard, service=service)
    app.add_middleware(NormalizeRequests)  # the last one that is added runs first
    app.add_exception_handler(EaglerayError, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_defect)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


@contextlib.asynccontextmanager
async def _running(service: ImageService) -> AsyncIterator[None]:
    """Run a service with its application, which takes requests once the models are loaded."""
    await service.start()
    await service.wait_until_loaded(patience=_LOAD_SECONDS)
    try:
        yield
    finally:
        await service.stop()


def _document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with the schemas that routes reference by name."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=app.routes,
        )
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for body in (JsonBody, BatchBody, JobBody, ProblemDocument):
            schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {})
            schemas[body.__name__] = schema
        components["securitySchemes"] = SECURITY
        document["security"] = [{name: []} for name in SECURITY]
        for path in _WITHOUT_KEY:
            document["paths"][path]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, EaglerayError)
    return problem_response(problem_from_error(error), request_id_of(request.scope))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    name = ".".join(str(part) for part in fault["loc"][1:])  # without "query" or "body"
    if fault["type"] == "extra_forbidden":
        detail = f"Parameter {name} is not known; /docs lists the known ones."
    else:
        detail = f"Parameter {describe_validation_fault({**fault, 'loc': fault['loc'][1:]})}."
    problem = Problem(422, "parameter", HTTPStatus(422).phrase, detail)
    return problem_response(problem, request_id_of(request.scope))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {}
    detail = f"{request.method} {request.url.path}: {error.detail}; /docs lists the paths."
    if error.status_code == 405:
        headers = {"allow": ", ".join(_allowed(request))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        method = request.scope.get(METHOD, request.method)
        detail = f"{request.url.path} supports {headers['allow']}, not {method}."
    problem = Problem(error.status_code, "http", str(error.detail), detail)
    response = problem_response(problem, request_id_of(request.scope))
    response.headers.update(headers)
    return response


def _allowed(request: Request) -> list[str]:
    """Return the methods that a path supports."""
    routes = request.app.routes
    found = [
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes
        )
    ]
    return [*found, *(["HEAD"] if "GET" in found else []), "OPTIONS"]


async def _on_disconnect(request: Request, _: Exception) -> Response:
    """Respond to a caller that disconnected before it had sent everything, for log and metrics."""
    problem = Problem(
        GONE, "gone", "Caller disconnected", "The connection ended before the request did."
    )
    return problem_response(problem, request_id_of(request.scope))


async def _on_defect(request: Request, error: Exception) -> Response:
    """Respond to an unexpected error: the log gets the traceback, the caller the request id."""
    request_id = request_id_of(request.scope)
    log.error("request %s failed", request_id, exc_info=error)
    detail = "The service has a defect; its log has the details under this request id."
    return problem_response(Problem(500, "defect", "Internal error", detail), request_id)
