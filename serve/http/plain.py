"""Requests made plain before anything looks at them: HEAD as GET, and no slashes too many.

Whatever answers GET answers HEAD, whose body the server leaves out; `/ready/` and `//ready` are
`/ready`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["METHOD", "Message", "PlainRequests", "Receive", "Scope", "Send"]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

METHOD = "eagleray.method"
"""Where the scope of a request has its method, if the application sees another."""

_SLASHES = re.compile("/{2,}")


class PlainRequests:
    """Makes requests plain.

    Args:
        app: Behind it.
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
