"""A page to try the service on: drop an image, see the answer, copy the lines that do the same."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, Request
from starlette.responses import Response

from eagleray.pages.render import render_page
from eagleray.serving.routing import Role, Via
from eagleray.serving.service import ImageService

__all__ = ["page_routes"]


def page_routes(service: ImageService) -> APIRouter:
    """Return the route of the page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        names = sorted(service.snapshot.aliases)
        models = [
            {"name": name, "serving": service.fleet.serving(Role(name, Via.DEFAULT))}
            for name in names
        ]
        nonce = secrets.token_urlsafe(16)
        content = render_page(
            "service.html.j2",
            models=models,
            url=str(request.base_url).rstrip("/"),
            needs_key=service.demands_keys,
            nonce=nonce,
        )
        return Response(content, media_type="text/html; charset=utf-8")

    return router
