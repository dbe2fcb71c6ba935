"""Serves a page to try the service: drop an image, see its prediction, copy the equivalent code."""

from __future__ import annotations

import secrets

from fastapi import APIRouter
from starlette.responses import Response

from eagleray.reports.render import render_page
from eagleray.serving.service import ImageService
from eagleray.serving.versions.routing import Role, Via
from eagleray.tasks import Task

__all__ = ["page_response", "page_routes"]

_CLOSED = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def page_routes(service: ImageService) -> APIRouter:
    """Return the route of the page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> Response:
        names = sorted(service.snapshot.aliases)
        models = [_describe(service, name) for name in names]
        nonce = secrets.token_urlsafe(16)
        content = render_page(
            "service.html.j2",
            models=models,
            needs_key=service.authenticator.requires_keys,
            nonce=nonce,
        )
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "connect-src 'self'; img-src data: blob:"
        )
        return page_response(content, policy)

    return router


def _describe(service: ImageService, name: str) -> dict[str, object]:
    """Return a model's name, the version that serves it, and the member that it predicts."""
    serving = service.model_pool.serving(Role(name, Via.DEFAULT))
    loaded = None if serving is None else service.model_pool.loaded(name, serving)
    task = Task if loaded is None else loaded.manifest.task
    return {"name": name, "serving": serving, "member": task.main_member}


def page_response(content: bytes, policy: str) -> Response:
    """Return a page of the service.

    Args:
        content: HTML.
        policy: Content-Security-Policy of the page; framing and posting forms are forbidden in
            addition.
    """
    headers = {"content-security-policy": f"{policy}; {_CLOSED}"}
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)
