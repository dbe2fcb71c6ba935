"""Checks the content type of a request's body before the body is read."""

from __future__ import annotations

from starlette.requests import Request

from eagleray.serving.problems import UnsupportedError

__all__ = [
    "FORM_IN_URL",
    "RAW_TYPES",
    "content_type",
    "is_json",
    "require_json",
    "require_json_type",
    "require_uncompressed",
]

FORM_IN_URL = "application/x-www-form-urlencoded"
RAW_TYPES = ("application/octet-stream", "binary/octet-stream", FORM_IN_URL)
"""Content types of bodies that may be one encoded image; curl sends the last by default."""


def content_type(request: Request) -> str:
    """Return the content type in lower case, without parameters; a missing one is raw bytes."""
    text = request.headers.get("content-type") or RAW_TYPES[0]
    return text.partition(";")[0].strip().lower() or text


def is_json(kind: str) -> bool:
    """Whether a content type is JSON."""
    return kind == "application/json" or kind.endswith("+json")


def require_json(request: Request) -> None:
    """Refuse a body with a content type that cannot be JSON, such as an image or a table.

    Raises:
        UnsupportedError: If the body has such a type, or is compressed.
    """
    require_uncompressed(request)
    kind = content_type(request)
    if kind.startswith(("image/", "multipart/")) or kind == "text/csv":
        raise UnsupportedError(f"Content type {kind} is not supported here; send JSON.")


def require_json_type(request: Request) -> None:
    """Refuse a body without a JSON content type, which a page of another site cannot send.

    Raises:
        UnsupportedError: If the body has another type or none, or is compressed.
    """
    require_uncompressed(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not is_json(kind):
        given = f"Content type {kind}" if kind else "A body without a content type"
        raise UnsupportedError(f"{given} is not supported here; send application/json.")


def require_uncompressed(request: Request) -> None:
    """Refuse a compressed body, whose uncompressed size has no bound.

    Raises:
        UnsupportedError: If the body is compressed.
    """
    if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise UnsupportedError(
            "A compressed body is not supported; send it without Content-Encoding (images are "
            "compressed already)."
        )
