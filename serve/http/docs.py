"""The page of the interface: Swagger UI on the OpenAPI document, all of it from this service.

Swagger UI comes with the package `fastapi-swagger`, of which nothing but two files is used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from eagleray.reports.render import render_page
from eagleray.serve.http.page import page_response

__all__ = ["docs_routes"]

_SHIPPED = "fastapi_swagger.resources"
_OURS = "eagleray.reports"
_FILES = {
    "swagger-ui-bundle.js": (_SHIPPED, "swagger-ui-bundle.js", "text/javascript"),
    "swagger-ui.css": (_SHIPPED, "swagger-ui.css", "text/css"),
    "docs.js": (_OURS, "static/docs.js", "text/javascript"),
}
# Swagger UI draws with inline styles, and with small pictures inside its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'"
)
_KEPT = {
    "cache-control": "private, max-age=3600",  # the same for all, and the bundle is large
    "vary": "origin, sec-fetch-site, sec-fetch-mode, sec-fetch-dest",
}


def docs_routes() -> APIRouter:
    """Return the routes of the page and of what it loads."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs() -> Response:
        return page_response(render_page("docs.html.j2"), _POLICY)

    for name, (package, path, media_type) in _FILES.items():
        router.add_api_route(f"/docs/{name}", _file(package, path, media_type), methods=["GET"])
    return router


def _file(package: str, path: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    """Return a handler that answers with a file of a package."""

    async def answer() -> Response:
        content = files(package).joinpath(path).read_bytes()
        return Response(content, media_type=media_type, headers=_KEPT)

    return answer
