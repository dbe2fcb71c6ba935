"""The HTTP application, put together."""

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
from eagleray.serve.http.batches import batch_routes
from eagleray.serve.http.bodies import JsonBody
from eagleray.serve.http.docs import docs_routes
from eagleray.serve.http.documents import SECURITY, ProblemDocument
from eagleray.serve.http.guard import GONE, Guard, problem_response, request_id_of
from eagleray.serve.http.health import health_routes
from eagleray.serve.http.models import model_routes
from eagleray.serve.http.page import page_routes
from eagleray.serve.http.plain import METHOD, PlainRequests
from eagleray.serve.http.predict import predict_routes
from eagleray.serve.http.protocol import protocol_routes
from eagleray.serving.batches import BatchBody, Launcher
from eagleray.serving.problems import PROBLEM_TYPE, Problem, problem_of
from eagleray.serving.service import ImageService

__all__ = ["build_http"]

log = logging.getLogger(__name__)

_PATIENCE = 300.0  # seconds for the models that are kept

_PROBLEM_ANSWER = {
    "description": "Any other refusal.",
    "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
}
_METHODS = ("GET", "POST", "DELETE")
_NEED_NO_KEY = ("/live", "/v2/health/live")


def build_http(service: ImageService, launcher: Launcher) -> FastAPI:
    """Return the application of a service, which starts and ends with it.

    Args:
        service: Answers.
        launcher: Runs batch jobs.
    """
    app = FastAPI(
        title="Eagleray",
        summary="Image models, always in the right version.",
        version=version_of("eagleray"),
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere; ours is docs_routes
        redoc_url=None,
        redirect_slashes=False,  # none is there any more
        lifespan=lambda _: _alive(service),
        responses={"default": _PROBLEM_ANSWER},
    )
    for routes in (predict_routes, model_routes, protocol_routes, health_routes, page_routes):
        app.include_router(routes(service))
    app.include_router(docs_routes())
    app.include_router(batch_routes(service, launcher))
    app.add_middleware(Guard, service=service)
    app.add_middleware(PlainRequests)  # the last that is added is the first that is asked
    app.add_exception_handler(EaglerayError, _refused)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _no_such_thing)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _defect)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


@contextlib.asynccontextmanager
async def _alive(service: ImageService) -> AsyncIterator[None]:
    """Start a service with its interface; nothing is asked of it before its models are there."""
    await service.start()
    await service.settled(patience=_PATIENCE)
    try:
        yield
    finally:
        await service.stop()


def _document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with the schemas that routes name without using them."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=app.routes,
        )
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for body in (JsonBody, BatchBody, ProblemDocument):
            schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {})
            schemas[body.__name__] = schema
        components["securitySchemes"] = SECURITY
        document["security"] = [{name: []} for name in SECURITY]
        for path in _NEED_NO_KEY:
            document["paths"][path]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, EaglerayError)
    return problem_response(problem_of(error), request_id_of(request.scope))


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    name = ".".join(str(part) for part in fault["loc"][1:])  # without where it stands
    if fault["type"] == "extra_forbidden":
        detail = f"Parameter {name} is not known; /docs lists those that are."
    else:
        detail = f"Parameter {name}: {fault['msg']}."
    problem = Problem(422, "parameter", HTTPStatus(422).phrase, detail)
    return problem_response(problem, request_id_of(request.scope))


async def _no_such_thing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {}
    detail = f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is."
    if error.status_code == 405:
        headers = {"allow": ", ".join(_allowed(request))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        method = request.scope.get(METHOD, request.method)
        detail = f"{request.url.path} takes {headers['allow']}, not {method}."
    problem = Problem(error.status_code, "http", str(error.detail), detail)
    response = problem_response(problem, request_id_of(request.scope))
    response.headers.update(headers)
    return response


def _allowed(request: Request) -> list[str]:
    """Return the methods that a path takes."""
    routes = request.app.routes
    found = [
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes
        )
    ]
    return [*found, *(["HEAD"] if "GET" in found else []), "OPTIONS"]


async def _gone(request: Request, _: Exception) -> Response:
    """Note that the caller went away before it had sent everything."""
    problem = Problem(GONE, "gone", "Caller gone", "The connection ended inside the request.")
    return problem_response(problem, request_id_of(request.scope))


async def _defect(request: Request, error: Exception) -> Response:
    """Answer a defect of ours: the traceback goes to the log, the request id to the caller."""
    request_id = request_id_of(request.scope)
    log.error("request %s failed", request_id, exc_info=error)
    detail = "The service has a defect; its log has the details under this request id."
    return problem_response(Problem(500, "defect", "Internal error", detail), request_id)
