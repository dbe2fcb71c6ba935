"""Reads what a service answered within bounds, and raises one error for all that is not an answer.

Between a client and its service there may be proxies, login pages and other programs, and a name
may lead elsewhere. So an answer is only taken as one if its status, its content type, its encoding,
its size and its members are those of Eagleray.
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
from eagleray.serving.json_body import read_json
from eagleray.serving.problems import TooLargeError

__all__ = ["Received", "RequestRefusedError", "as_model", "member", "read_answer", "receive"]

_JSON, _JSON_LINES, _PROBLEM = "application/json", "application/jsonl", "application/problem+json"
_MAX_VALUES = 4_000_000  # of JSON; in Python's memory 64 bytes each
_MAX_PROBLEM_BYTES = 1_000_000
_MAX_SHOWN = 1000  # characters of a sentence of others
_MAX_DIGITS = 9

Model = TypeVar("Model", bound=BaseModel)


class RequestRefusedError(EaglerayError):
    """The service refuses a request, does not answer in time, or something else answers.

    Attributes:
        status: Of HTTP; 0 where nothing came back.
        problem: The problem document, as it came.
        retry_after: Seconds after which the service wants to be asked again.
    """

    def __init__(
        self, status: int, problem: dict[str, Any], retry_after: float | None = None
    ) -> None:
        super().__init__(_shown(problem.get("detail") or f"the service answered {_named(status)}"))
        self.status, self.problem, self.retry_after = status, problem, retry_after

    def __reduce__(self) -> tuple[type[RequestRefusedError], tuple[Any, ...]]:
        # Exceptions are rebuilt from `args` when they cross a process.
        return RequestRefusedError, (self.status, self.problem, self.retry_after)


@dataclass(frozen=True, slots=True)
class Received:
    """A response, read to its end.

    Attributes:
        status: Of HTTP.
        headers: Of the response.
        body: None where it is larger than it may be, or compressed.
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
        """Whether the service did what it was asked."""
        return 200 <= self.status < 300


_STATUSES = frozenset(map(int, HTTPStatus))


async def receive(response: httpx.Response, *, max_bytes: int) -> Received:
    """Read a response that has begun.

    Raises:
        RequestRefusedError: An answer is larger than it may be, or compressed although the request
            says that it must not be: a few bytes of it may stand for any number.
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
                "detail": f"the answer is larger than {limit:,} bytes; ask for less at a time, or "
                "give the client a larger max_response_bytes"
                if encoding in ("", "identity")
                else f"the answer is compressed ({encoding}), which was not asked for; have the "
                "proxy before the service leave answers as they are"
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


def read_answer(received: Received) -> Any:
    """Return what an answer holds: a JSON value, or a list of them where it has JSON lines.

    Raises:
        BadImageError: The only image of the request cannot be used.
        RequestRefusedError: The service refuses the request, or this is no answer of a service.
    """
    if not received.is_success:
        raise _refusal(received)
    assert received.body is not None
    if received.content_type not in (_JSON, _JSON_LINES):
        raise _stranger(received, f"a content type of {received.content_type or 'none'!r}")
    try:
        if received.content_type == _JSON:
            return read_json(received.body, max_values=_MAX_VALUES)
        return _read_lines(received.body)
    except TooLargeError:
        raise RequestRefusedError(
            received.status,
            {
                "detail": f"the answer holds more than {_MAX_VALUES:,} values of JSON; ask for "
                "less at a time"
            },
        ) from None
    except InputError:
        raise _stranger(received, "a body that is no JSON, or is cut") from None


def _read_lines(body: bytes) -> list[Any]:
    marks = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if marks > _MAX_VALUES:
        raise TooLargeError("too many values")
    return [read_json(line, max_values=_MAX_VALUES) for line in body.split(b"\n") if line]


def as_model(kind: type[Model], body: Any) -> Model:
    """Return an answer as what it should be; members that later services add are ignored.

    Raises:
        RequestRefusedError: A member is missing, or is of another kind.
    """
    try:
        return kind.model_validate(body, extra="ignore")
    except ValidationError as error:
        raise _not_ours(first_validation_error(error)) from None
    except RecursionError:
        raise _not_ours("it is nested too deeply") from None


def member(body: Any, name: str) -> list[Any]:
    """Return the list of objects that an answer holds under a name.

    Raises:
        RequestRefusedError: There is none.
    """
    found = body.get(name) if isinstance(body, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise _not_ours(f"{name} is no list of objects")
    return found


def _not_ours(fault: str) -> RequestRefusedError:
    detail = (
        f"the answer cannot be read ({fault}); the service is of another version, or the address "
        "is not that of a service of Eagleray"
    )
    return RequestRefusedError(200, {"detail": detail})


def _stranger(received: Received, what: str) -> RequestRefusedError:
    """Return the error for an answer that no service of Eagleray gives."""
    detail = (
        f"the answer {_named(received.status)} has {what}, so it is not of a service of Eagleray; "
        "check the address, and what stands between it and here"
    )
    return RequestRefusedError(received.status, {"detail": detail}, _retry_after(received.headers))


def _refusal(received: Received) -> EaglerayError:
    """Return the error for a response that is no success."""
    if 300 <= received.status < 400:
        return RequestRefusedError(received.status, {"detail": _redirected(received)})
    problem: Any = None
    if received.body is not None and received.content_type in (_PROBLEM, _JSON):
        with suppress(InputError, TooLargeError):
            problem = read_json(received.body)
    if not isinstance(problem, dict):
        return _stranger(received, f"a content type of {received.content_type or 'none'!r}")
    if problem.get("reason") in list(Reason):
        detail = problem.get("detail") or problem.get("title") or "the image cannot be used"
        return BadImageError(Reason(problem["reason"]), _shown(detail))
    return RequestRefusedError(received.status, problem, _retry_after(received.headers))


def _redirected(received: Received) -> str:
    """Describe a redirect, which is not followed: the key is for the service alone."""
    try:
        target = urlsplit(received.headers.get("location", ""))
        place = f"{target.scheme}://{target.hostname}" if target.hostname else "another path"
    except ValueError:
        place = "an address that cannot be read"
    return (
        f"the answer {_named(received.status)} points to {place}; it is not followed, since the "
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
    """Return a sentence of a service, or of whatever else answers, as it may be printed."""
    text = detail if isinstance(detail, str) else json.dumps(detail, default=str)
    return escape_text(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")
