"""ASGI middleware that admits requests: origin, key, size, pace; it logs and traces them too.

It acts while the body is still arriving: a request without a key, or one that declares too many
bytes, is refused before its body is read.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from eagleray.core.errors import EaglerayError
from eagleray.serve.http.normalize import METHOD, Message, Receive, Scope, Send
from eagleray.serve.http.origins import (
    require_own_host,
    require_own_pages,
    require_typed_body,
)
from eagleray.serve.security_headers import SAFE_HEADERS
from eagleray.serving.logs import log_access
from eagleray.serving.prediction.tracing import NO_TRACE, Trace
from eagleray.serving.problems import PROBLEM_TYPE, Problem, SlowError, problem_from_error
from eagleray.serving.service import ImageService

__all__ = [
    "CLIENT",
    "GONE",
    "MAX_NUMBER_DIGITS",
    "TRACE",
    "Guard",
    "application_of",
    "problem_response",
    "request_id_of",
]

CLIENT = "eagleray.client"
"""Key in the scope with the properties of the request for its log line, such as the application."""

TRACE = "eagleray.trace"
"""Key in the scope with the trace of the request."""

MAX_NUMBER_DIGITS = 18
"""Maximum number of digits of a length in a header."""

GONE = 499
"""The status of a request whose caller disconnected, for log and metrics only."""

_BASIC = 'Basic realm="Eagleray: any user name, with an application\'s key as password"'
_WITHOUT_KEY = frozenset({"/v2/health/live", "/live"})
_CAPACITY = b"x-eagleray-capacity"  # tells HAProxy how many predictions the replica takes at once
_REFUSED = "x-eagleray-refused"  # number of requests that HAProxy refused since the last one
_PREDICTIONS = ("/predict", "/infer", "/invocations")
_PROBES = _WITHOUT_KEY | {"/v2/health/ready", "/ready", "/metrics"}  # not traced
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"})
_MIN_BYTES_PER_SECOND = 100_000  # of a body, after the first seconds
_MAX_WHOLE_BODY = 150_000  # HAProxy forwards a body of this size when all of it has arrived
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Guard:
    """Admits requests to the application, or refuses them.

    Args:
        app: The application.
        service: The service, which knows keys and limits.
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
        client = {"request_id": request_id, "application": "", "model": "", "version": ""}
        scope[CLIENT] = client
        probing = scope["path"] in _PROBES
        trace = NO_TRACE if probing else self._service.tracing.begin(headers)
        scope[TRACE] = trace
        response = _Response(send, self._own_headers(scope, request_id), _may_be_arriving(headers))
        if _REFUSED in headers:
            self._service.telemetry.rejections.labels("full").inc(_number(headers[_REFUSED]))
        try:
            await self._admit(scope, headers, receive, response)
        except EaglerayError as error:
            await self._refusal(error, scope, headers)(scope, receive, response.send)
        except asyncio.CancelledError:  # the server ends a request whose caller disconnected
            response.status = GONE
            raise
        finally:
            if trace.trace_id:
                client["trace_id"] = trace.trace_id
            self._record(scope, client, response.status, time.monotonic() - began)
            if trace.is_recording:
                _end_trace(trace, scope, headers, client, response.status)

    def _own_headers(
        self, scope: Scope, request_id: str
    ) -> Callable[[], list[tuple[bytes, bytes]]]:
        """Return a function that makes the headers which every response of a request has."""

        def own_headers() -> list[tuple[bytes, bytes]]:
            headers = [(b"x-request-id", request_id.encode())]
            if scope["path"].endswith(_PREDICTIONS):
                headers.append((_CAPACITY, b"%d" % self._service.workers.capacity))
            return headers

        return own_headers

    def _refusal(self, error: EaglerayError, scope: Scope, headers: Headers) -> Response:
        problem = problem_from_error(error)
        self._service.telemetry.rejections.labels(problem.kind).inc()
        response = problem_response(problem, request_id_of(scope))
        if problem.status == 401 and _is_opened_in_browser(scope, headers):
            response.headers["www-authenticate"] = _BASIC
        return response

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Refuse requests from pages of other sites, and for names that are not the service's."""
        allowed = self._service.config.allow_hosts
        names = allowed if allowed or not self._service.authenticator.requires_keys else None
        require_own_host(headers, names=names, may_lack=scope["path"] in _WITHOUT_KEY)
        method = scope.get(METHOD, scope["method"])
        require_own_pages(method, scope["path"], headers)
        require_typed_body(method, scope["path"], headers)

    async def _admit(
        self, scope: Scope, headers: Headers, receive: Receive, response: _Response
    ) -> None:
        """Check a request, and pass it to the application with a body that is limited."""
        self._check_origin(scope, headers)
        if scope["path"] not in _WITHOUT_KEY:
            address = scope["client"][0] if scope.get("client") else None
            scope[CLIENT]["application"] = self._service.authenticator.authenticate(
                _key_of(headers), address
            )
        if scope["path"].endswith(_PREDICTIONS):
            self._service.workers.require_room(1)  # before any of the images is read
        self._service.byte_limiter.require_size(_number(headers.get("content-length", "0")))
        with self._service.byte_limiter.hold(scope[CLIENT]["application"]) as grow:
            total, complete = 0, False
            end = time.monotonic() + self._service.config.timeout_s

            async def receive_counted() -> Message:
                nonlocal total, complete
                if complete:
                    return await receive()
                message = await _in_time(receive, end + total / _MIN_BYTES_PER_SECOND)
                total += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                response.closes = response.closes and not complete
                grow(total)
                return message

            await self._app(scope, receive_counted, response.send)

    def _record(self, scope: Scope, client: dict[str, str], status: int, seconds: float) -> None:
        """Count and log a request that has ended."""
        if client["model"]:
            labels = (client["model"], client["version"], client["application"] or "anonymous")
            self._service.telemetry.requests.labels(*labels, status).inc()
        log_access(
            method=scope.get(METHOD, scope["method"]),
            path=scope["path"],
            status=status,
            milliseconds=round(seconds * 1000, 2),
            **client,
        )


class _Response:
    """Sends the response of a request with additional headers, and keeps its status.

    Args:
        send: Sends a message of ASGI.
        own_headers: Returns the headers to add.
        closes: Whether the connection is closed after the response, because the body is still
            arriving: its sender would otherwise hold the connection until the body's end.
    """

    def __init__(
        self, send: Send, own_headers: Callable[[], list[tuple[bytes, bytes]]], closes: bool
    ) -> None:
        self._send, self._own_headers, self.closes = send, own_headers, closes
        self.status = 500

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message.get("headers", ()))
            closing = [(b"connection", b"close")] if self.closes else []
            message["headers"] = [*given, *_missing_headers(given), *self._own_headers(), *closing]
        await self._send(message)


async def _in_time(receive: Receive, end: float) -> Message:
    """Wait for the next part of a body, which holds room as long as it is arriving.

    Raises:
        SlowError: If it does not arrive in time.
    """
    try:
        async with asyncio.timeout(max(0.0, end - time.monotonic())):
            return await receive()
    except TimeoutError:
        raise SlowError(
            f"The body arrives at less than {_MIN_BYTES_PER_SECOND:,} bytes a second; send it "
            "faster, or send less."
        ) from None


def _end_trace(
    trace: Trace, scope: Scope, headers: Headers, client: dict[str, str], status: int
) -> None:
    trace.note(request_id=client["request_id"], application=client["application"])
    error = str(status) if status >= 500 else None
    trace.end(_span_name(scope), _attributes(scope, headers, status), error=error)


def _span_name(scope: Scope) -> str:
    """Name a request by its method and route, by OpenTelemetry's conventions."""
    method = scope.get(METHOD, scope["method"])
    method = method if method in _METHODS else "HTTP"
    return f"{method} {_route(scope)}".strip()


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", ""))


def _attributes(scope: Scope, headers: Headers, status: int) -> dict[str, Any]:
    """Return the attributes of OpenTelemetry's conventions for HTTP servers."""
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


def _may_be_arriving(headers: Headers) -> bool:
    """Whether HAProxy forwards a request before all of its body has arrived."""
    length = _number(headers.get("content-length", "0"))
    return "transfer-encoding" in headers or length > _MAX_WHOLE_BODY


_SAFE_HEADERS = [(name.encode(), value.encode()) for name, value in SAFE_HEADERS.items()]


def _missing_headers(given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the security headers that a response does not set itself."""
    names = {name.lower() for name, _ in given}
    return [header for header in _SAFE_HEADERS if header[0] not in names]


def _is_opened_in_browser(scope: Scope, headers: Headers) -> bool:
    """Whether a browser opens a page, so that it can ask its user for the key.

    Over plain HTTP browsers send `Sec-Fetch-Mode` to loopback only; elsewhere the check is whether
    HTML is accepted.
    """
    if scope.get(METHOD, scope["method"]) not in ("GET", "HEAD"):
        return False
    mode = headers.get("sec-fetch-mode")
    if mode is None:
        return "text/html" in headers.get("accept", "")
    return mode == "navigate" and headers.get("sec-fetch-dest") == "document"


def _request_id(headers: Headers) -> str:
    """Return the id from the caller if it is valid, otherwise a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def application_of(request: Request) -> str:
    """Return the application that sent a request; "" where no key is needed."""
    return str(request.scope[CLIENT]["application"])


def request_id_of(scope: Scope) -> str:
    """Return the id of a request."""
    return str(scope[CLIENT]["request_id"])


def _key_of(headers: Headers) -> str | None:
    """Return the key of a request: a bearer token, `X-API-Key`, or the password of basic auth."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            text = base64.b64decode(value, validate=True).decode()
        except ValueError:  # not base64, or not UTF-8
            return None
        return text.partition(":")[2]
    return headers.get("x-api-key")


def _number(text: str) -> int:
    """Parse a number of a header; 0 if it is invalid."""
    return int(text[:MAX_NUMBER_DIGITS]) if text.isascii() and text.isdecimal() else 0


def problem_response(problem: Problem, request_id: str) -> Response:
    """Return a problem as a response, in ASCII, since text from the request may not be Unicode."""
    return Response(
        json.dumps(problem.as_json(request_id=request_id)),
        status_code=problem.status,
        headers=problem.headers(),
        media_type=PROBLEM_TYPE,
    )
