"""What happens to every request before a handler sees it, and to every error after one.

As plain ASGI, because it must act while the body is still on its way: a request without a key, or
that declares more bytes than one may have, is refused before it is read.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from eagleray.core.errors import EaglerayError
from eagleray.serve.answer_headers import SAFE_HEADERS
from eagleray.serve.http.origins import (
    require_own_host,
    require_own_pages,
    require_typed_body,
)
from eagleray.serve.http.plain import METHOD, Message, Receive, Scope, Send
from eagleray.serving.logs import log_access
from eagleray.serving.problems import PROBLEM_TYPE, Problem, SlowError, problem_of
from eagleray.serving.service import ImageService
from eagleray.serving.tracing import NO_TRACE

__all__ = [
    "CLIENT",
    "GONE",
    "LONGEST_NUMBER",
    "TRACE",
    "Guard",
    "problem_response",
    "request_id_of",
]

CLIENT = "eagleray.client"
"""Where the guard leaves who asks, in the scope of the request."""

TRACE = "eagleray.trace"
"""Where it leaves the request's trace."""

LONGEST_NUMBER = 18
"""Digits of a length in a header; a longer one is more than there can be."""

GONE = 499
"""The status of a request whose caller went away: there is nobody to answer."""

_ASK_A_PERSON = 'Basic realm="Eagleray: any name, and the key of an application as password"'
_OPEN = frozenset({"/v2/health/live", "/live"})
_ROOM = b"x-eagleray-room"  # for HAProxy, which passes on no more than that
_REFUSED = "x-eagleray-refused"  # by HAProxy, since it last passed something on
_PREDICTIONS = ("/predict", "/infer", "/invocations")
_PROBES = _OPEN | {"/v2/health/ready", "/ready", "/metrics"}  # they are not worth a trace
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"})
_SLOWEST = 100_000  # bytes a second that a body must come at, after the first seconds
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Guard:
    """Lets requests in.

    Args:
        app: Behind it.
        service: Knows keys and limits.
    """

    def __init__(self, app: Any, service: ImageService) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        status = 500
        if _REFUSED in headers:
            self._service.telemetry.rejections.labels("full").inc(_number(headers[_REFUSED]))

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = list(message.get("headers", ()))
                marks = [*_safe_headers(own), (b"x-request-id", request_id.encode())]
                if scope["path"].endswith(_PREDICTIONS):
                    marks.append((_ROOM, b"%d" % self._service.lanes.room))
                message["headers"] = [*own, *marks]
            await send(message)

        client = {"request_id": request_id, "application": "", "model": "", "version": ""}
        scope[CLIENT] = client
        probing = scope["path"] in _PROBES
        trace = NO_TRACE if probing else self._service.tracing.begin(headers)
        scope[TRACE] = trace
        try:
            await self._let_in(scope, headers, receive, send_marked)
        except EaglerayError as error:
            response = self._refuse(error, scope, headers)
            await response(scope, receive, send_marked)
        except asyncio.CancelledError:  # the server ends a request whose caller has gone
            status = GONE
            raise
        finally:
            if trace.trace_id:
                client["trace_id"] = trace.trace_id
            self._log(scope, client, status, time.monotonic() - began)
            if trace.is_recording:
                trace.note(request_id=request_id, application=client["application"])
                fault = str(status) if status >= 500 else None
                trace.end(_span_name(scope), _attributes(scope, headers, status), error=fault)

    def _refuse(self, error: EaglerayError, scope: Scope, headers: Headers) -> Response:
        problem = problem_of(error)
        self._service.telemetry.rejections.labels(problem.kind).inc()
        response = problem_response(problem, request_id_of(scope))
        if problem.status == 401 and _is_opened(scope, headers):
            response.headers["www-authenticate"] = _ASK_A_PERSON
        return response

    def _require_own(self, scope: Scope, headers: Headers) -> None:
        """Refuse what a page of another site, or of a name that is not the service's, sends."""
        allowed = self._service.config.allow_hosts
        names = allowed if allowed or not self._service.demands_keys else None
        require_own_host(headers, names=names, may_lack=scope["path"] in _OPEN)
        method = scope.get(METHOD, scope["method"])
        require_own_pages(method, scope["path"], headers)
        require_typed_body(method, scope["path"], headers)

    async def _let_in(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        self._require_own(scope, headers)
        if scope["path"] not in _OPEN:
            address = scope["client"][0] if scope.get("client") else None
            scope[CLIENT]["application"] = self._service.identify(_key_of(headers), address)
        if scope["path"].endswith(_PREDICTIONS):
            self._service.lanes.require_room(1)  # before anything of the images is read
        self._service.bytes.require_size(_number(headers.get("content-length", "0")))
        with self._service.bytes.hold(scope[CLIENT]["application"]) as grow:
            total, complete = 0, False
            end = time.monotonic() + self._service.config.timeout_s

            async def receive_counted() -> Message:
                nonlocal total, complete
                if complete:
                    return await receive()
                message = await _in_time(receive, end + total / _SLOWEST)
                total += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                grow(total)
                return message

            await self._app(scope, receive_counted, send)

    def _log(self, scope: Scope, client: dict[str, str], status: int, seconds: float) -> None:
        if client["model"]:
            labels = (client["model"], client["version"], client["application"] or "nobody")
            self._service.telemetry.requests.labels(*labels, status).inc()
        log_access(
            method=scope.get(METHOD, scope["method"]),
            path=scope["path"],
            status=status,
            milliseconds=round(seconds * 1000, 2),
            **client,
        )


async def _in_time(receive: Receive, end: float) -> Message:
    """Wait for the next part of a body, which holds room as long as it is on its way.

    Raises:
        SlowError: It does not come.
    """
    try:
        async with asyncio.timeout(max(0.0, end - time.monotonic())):
            return await receive()
    except TimeoutError:
        raise SlowError(
            f"The body comes at less than {_SLOWEST:,} bytes a second; send it faster, or less."
        ) from None


def _span_name(scope: Scope) -> str:
    """Name a request as OpenTelemetry does: its method and its route, which are few."""
    method = scope.get(METHOD, scope["method"])
    method = method if method in _METHODS else "HTTP"
    return f"{method} {_route(scope)}".strip()


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", ""))


def _attributes(scope: Scope, headers: Headers, status: int) -> dict[str, Any]:
    """Describe a request by OpenTelemetry's conventions for HTTP servers."""
    method = scope.get(METHOD, scope["method"])
    client, server = scope.get("client") or ("", 0), scope.get("server") or ("", None)
    found = {
        "http.request.method": method if method in _METHODS else "_OTHER",
        "http.route": _route(scope),
        "http.response.status_code": status,
        "url.scheme": scope.get("scheme", "http"),
        "url.path": scope["path"],
        "network.protocol.version": scope.get("http_version", ""),
        "client.address": client[0],
        "server.address": server[0],
        "server.port": server[1],
        "user_agent.original": headers.get("user-agent", ""),
    }
    return {name: value for name, value in found.items() if value not in ("", None)}


_SAFE_HEADERS = [(name.encode(), value.encode()) for name, value in SAFE_HEADERS.items()]


def _safe_headers(own: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return what tells browsers to be careful with an answer, where it does not say itself."""
    said = {name.lower() for name, _ in own}
    return [header for header in _SAFE_HEADERS if header[0] not in said]


def _is_opened(scope: Scope, headers: Headers) -> bool:
    """Whether a person opens a page, who can be asked for a key.

    Over plain HTTP browsers say so of loopback alone; elsewhere pages are what HTML is asked of.
    """
    if scope.get(METHOD, scope["method"]) not in ("GET", "HEAD"):
        return False
    mode = headers.get("sec-fetch-mode")
    if mode is None:
        return "text/html" in headers.get("accept", "")
    return mode == "navigate" and headers.get("sec-fetch-dest") == "document"


def _request_id(headers: Headers) -> str:
    """Return the caller's id where it is one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def request_id_of(scope: Scope) -> str:
    """Return the id that the guard gave a request."""
    return str(scope[CLIENT]["request_id"])


def _key_of(headers: Headers) -> str | None:
    """Return the key that a request brings: as a bearer, a header of its own, or a password."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            text = base64.b64decode(value, validate=True).decode()
        except ValueError:  # no base64, or no UTF-8
            return None
        return text.partition(":")[2]
    return headers.get("x-api-key")


def _number(text: str) -> int:
    """Read a number of a header; 0 where it is none."""
    return int(text[:LONGEST_NUMBER]) if text.isascii() and text.isdecimal() else 0


def problem_response(problem: Problem, request_id: str) -> Response:
    """Return a problem as a response, in ASCII: what it repeats of a request may be no Unicode."""
    return Response(
        json.dumps(problem.as_json(request_id=request_id)),
        status_code=problem.status,
        headers=problem.headers(),
        media_type=PROBLEM_TYPE,
    )
