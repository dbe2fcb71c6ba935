"""Serves the API documentation: Swagger UI for the OpenAPI document, without external resources.

Swagger UI comes from two files of the package `fastapi-swagger`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from eagleray.reports.render import render_page
from eagleray.serve.http.page import page_response

__all__ = ["docs_routes"]

_SWAGGER = "fastapi_swagger.resources"
_REPORTS = "eagleray.reports"
_FILES = {
    "swagger-ui-bundle.js": (_SWAGGER, "swagger-ui-bundle.js", "text/javascript"),
    "swagger-ui.css": (_SWAGGER, "swagger-ui.css", "text/css"),
    "docs.js": (_REPORTS, "static/docs.js", "text/javascript"),
}
# Swagger UI uses inline styles, and images embedded in its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'"
)
_CACHED = {
    "cache-control": "private, max-age=3600",  # the same for all callers, and large
    "vary": "origin, sec-fetch-site, sec-fetch-mode, sec-fetch-dest",
}


def docs_routes() -> APIRouter:
    """Return the routes of the page and of its resources."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs() -> Response:
        return page_response(render_page("docs.html.j2"), _POLICY)

    for name, (package, path, media_type) in _FILES.items():
        router.add_api_route(f"/docs/{name}", _file(package, path, media_type), methods=["GET"])
    return router


def _file(package: str, path: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    """Return a handler that responds with a file of a package."""

    async def respond() -> Response:
        content = files(package).joinpath(path).read_bytes()
        return Response(content, media_type=media_type, headers=_CACHED)

    return respond
