"""Normalizes requests before routing: HEAD becomes GET, and redundant slashes are removed.

Every route for GET also serves HEAD, whose body the server omits; `/ready/` and `//ready` are
`/ready`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["METHOD", "Message", "NormalizeRequests", "Receive", "Scope", "Send"]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

METHOD = "eagleray.method"
"""Key in the scope with the original method, if the application sees another."""

_SLASHES = re.compile("/{2,}")


class NormalizeRequests:
    """ASGI middleware that normalizes requests.

    Args:
        app: The application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] == "http":
            path = _SLASHES.sub("/", scope["path"]).rstrip("/") or "/"
            scope = {**scope, "path": path}
            if scope["method"] == "HEAD":
                scope |= {"method": "GET", METHOD: "HEAD"}
        await self._app(scope, receive, send)
