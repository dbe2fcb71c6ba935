"""Reads responses within bounds, and raises one error for responses that are not of Eagleray.

Between a client and its service there may be proxies, login pages and other programs. So a response
is accepted only if its status, content type, encoding, size and fields are those of Eagleray.
"""

from __future__ import annotations

import email.utils
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from eagleray.core.display import escape_text
from eagleray.core.errors import BadImageError, EaglerayError, InputError, Reason
from eagleray.core.validation import first_validation_error
from eagleray.serving.problems import TooLargeError
from eagleray.serving.protocol.json_body import read_json

__all__ = ["Received", "RequestRefusedError", "as_model", "member", "read_response", "receive"]

_JSON, _JSON_LINES, _PROBLEM = "application/json", "application/jsonl", "application/problem+json"
_MAX_VALUES = 4_000_000  # of JSON; in Python's memory 64 bytes each
_MAX_PROBLEM_BYTES = 1_000_000
_MAX_SHOWN = 1000  # characters of an untrusted sentence
_MAX_DIGITS = 9

Model = TypeVar("Model", bound=BaseModel)


class RequestRefusedError(EaglerayError):
    """The service refuses a request, does not respond in time, or the response is not of Eagleray.

    Attributes:
        status: HTTP status; 0 without a response.
        problem: Problem document of the response.
        retry_after: Seconds until the next attempt, as the service says.
    """

    def __init__(
        self, status: int, problem: dict[str, Any], retry_after: float | None = None
    ) -> None:
        super().__init__(
            _shown(problem.get("detail") or f"the service responded with {_named(status)}")
        )
        self.status, self.problem, self.retry_after = status, problem, retry_after

    def __reduce__(self) -> tuple[type[RequestRefusedError], tuple[Any, ...]]:
        # Exceptions are rebuilt from `args` when they cross a process.
        return RequestRefusedError, (self.status, self.problem, self.retry_after)


@dataclass(frozen=True, slots=True)
class Received:
    """A complete response.

    Attributes:
        status: HTTP status.
        headers: HTTP headers.
        body: Content; None if it is too large or compressed.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | None

    @property
    def content_type(self) -> str:
        """The media type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def is_success(self) -> bool:
        """Whether the request succeeded."""
        return 200 <= self.status < 300


_STATUSES = frozenset(map(int, HTTPStatus))


async def receive(response: httpx.Response, *, max_bytes: int) -> Received:
    """Read a response that has begun.

    Raises:
        RequestRefusedError: If the response is too large, or compressed although the request
            forbids it: a few compressed bytes may stand for any number.
    """
    body: bytes | None = None
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    limit = max_bytes if response.is_success else min(max_bytes, _MAX_PROBLEM_BYTES)
    if encoding in ("", "identity"):
        body = await _read_up_to(response.aiter_raw(), limit)
    if body is None and response.is_success:
        raise RequestRefusedError(
            response.status_code,
            {
                "detail": f"the response is larger than {limit:,} bytes; ask for less at a time, "
                "or give the client a larger max_response_bytes"
                if encoding in ("", "identity")
                else f"the response is compressed ({encoding}), which was not requested; have the "
                "proxy before the service leave responses as they are"
            },
        )
    return Received(response.status_code, response.headers, body)


async def _read_up_to(chunks: AsyncIterator[bytes], max_bytes: int) -> bytes | None:
    read = bytearray()
    async for chunk in chunks:
        if len(read) + len(chunk) > max_bytes:
            return None
        read += chunk
    return bytes(read)


def read_response(received: Received) -> Any:
    """Return the content of a response: a JSON value, or a list of them for JSON lines.

    Raises:
        BadImageError: If the only image of the request cannot be used.
        RequestRefusedError: If the service refuses the request, or the response is not of Eagleray.
    """
    if not received.is_success:
        raise _refusal(received)
    assert received.body is not None
    if received.content_type not in (_JSON, _JSON_LINES):
        raise _not_eagleray(received, f"a content type of {received.content_type or 'none'!r}")
    try:
        if received.content_type == _JSON:
            return read_json(received.body, max_values=_MAX_VALUES)
        return _read_lines(received.body)
    except TooLargeError:
        raise RequestRefusedError(
            received.status,
            {
                "detail": f"the response holds more than {_MAX_VALUES:,} values of JSON; ask for "
                "less at a time"
            },
        ) from None
    except InputError:
        raise _not_eagleray(received, "a body that is not JSON, or is incomplete") from None


def _read_lines(body: bytes) -> list[Any]:
    marks = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if marks > _MAX_VALUES:
        raise TooLargeError("too many values")
    return [read_json(line, max_values=_MAX_VALUES) for line in body.split(b"\n") if line]


def as_model(kind: type[Model], body: Any) -> Model:
    """Parse a response; fields that later services add are ignored.

    Raises:
        RequestRefusedError: If a field is missing or invalid.
    """
    try:
        return kind.model_validate(body, extra="ignore")
    except ValidationError as error:
        raise _unreadable(first_validation_error(error)) from None
    except RecursionError:
        raise _unreadable("it is nested too deeply") from None


def member(body: Any, name: str) -> list[Any]:
    """Return the list of objects under a name in a response.

    Raises:
        RequestRefusedError: If there is none.
    """
    found = body.get(name) if isinstance(body, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise _unreadable(f"{name} is not a list of objects")
    return found


def _unreadable(fault: str) -> RequestRefusedError:
    detail = (
        f"the response cannot be read ({fault}); the service is of another version, or the address "
        "is not that of a service of Eagleray"
    )
    return RequestRefusedError(200, {"detail": detail})


def _not_eagleray(received: Received, what: str) -> RequestRefusedError:
    """Return the error for a response that is not of Eagleray."""
    detail = (
        f"the response {_named(received.status)} has {what}, so it is not of a service of "
        "Eagleray; check the address, and the proxies between it and this machine"
    )
    return RequestRefusedError(received.status, {"detail": detail}, _retry_after(received.headers))


def _refusal(received: Received) -> EaglerayError:
    """Return the error for an unsuccessful response."""
    if 300 <= received.status < 400:
        return RequestRefusedError(received.status, {"detail": _redirected(received)})
    problem: Any = None
    if received.body is not None and received.content_type in (_PROBLEM, _JSON):
        with suppress(InputError, TooLargeError):
            problem = read_json(received.body)
    if not isinstance(problem, dict):
        return _not_eagleray(received, f"a content type of {received.content_type or 'none'!r}")
    if problem.get("reason") in list(Reason):
        detail = problem.get("detail") or problem.get("title") or "the image cannot be used"
        return BadImageError(Reason(problem["reason"]), _shown(detail))
    return RequestRefusedError(received.status, problem, _retry_after(received.headers))


def _redirected(received: Received) -> str:
    """Describe a redirect, which is not followed, because the key is for the service alone."""
    try:
        target = urlsplit(received.headers.get("location", ""))
        place = f"{target.scheme}://{target.hostname}" if target.hostname else "another path"
    except ValueError:
        place = "an address that cannot be read"
    return (
        f"the response {_named(received.status)} points to {place}; it is not followed, since the "
        "key and the images are for this address alone: give the client the service's own one"
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` says, as a number or as a date."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:_MAX_DIGITS])
    try:
        moment = email.utils.parsedate_to_datetime(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def _named(status: int) -> str:
    return f"{status} {HTTPStatus(status).phrase}" if status in _STATUSES else str(status)


def _shown(detail: object) -> str:
    """Return an untrusted sentence as it may be printed."""
    text = detail if isinstance(detail, str) else json.dumps(detail, default=str)
    return escape_text(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")
