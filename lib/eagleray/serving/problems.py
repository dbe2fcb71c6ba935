"""What the service refuses, as RFC 9457 problem details.

    ServiceError
    ├── NotAllowedError      no key, or one that does not hold       401
    ├── ForbiddenError       what this caller may not do             403
    ├── SlowError            a body that does not come            408
    ├── NotFinishedError     what is asked for is not there yet      409
    ├── TooLargeError        a body or a list above its limit        413
    ├── UnsupportedError     a content type that is not taken        415
    ├── FullError            no room, or above the quota             429
    ├── NotReadyError        the version is not there yet, or fails  503
    └── DeadlineError        the answer would come too late          504

All other errors of Eagleray carry their status too, so one function turns any of them into a
problem. What names places and addresses of the service is for its log: an `OutageError` has another
sentence for callers, and a plain `UserError`, which is no caller's mistake here, has none. A
problem's `type` is a path of the service that explains it; its `title` never changes, its `detail`
is a sentence about this request.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

from eagleray.core.errors import (
    BadImageError,
    EaglerayError,
    OutageError,
    PackageError,
    Reason,
    UnknownNameError,
    UnknownVersionError,
    UserError,
)

__all__ = [
    "PROBLEM_TYPE",
    "DeadlineError",
    "ForbiddenError",
    "FullError",
    "NotAllowedError",
    "NotFinishedError",
    "NotReadyError",
    "Problem",
    "ServiceError",
    "SlowError",
    "TooLargeError",
    "UnsupportedError",
    "problem_of",
    "public_fault",
    "without_places",
]

log = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"

_SECONDS_BETWEEN_LINES = 10.0  # of the log about one outage
_MAX_LINES_KEPT = 1000

_PLACE = re.compile(
    r"""[A-Za-z][A-Za-z0-9+.-]*://[^\s'"()<>,;]+  # a URI
    | (?<![\w.~/-])/[^\s'"()<>,;:/]+(?:/[^\s'"()<>,;:]*)+  # an absolute path of several parts
    """,
    re.VERBOSE,
)
_HIDDEN = "…"

_STATUS_OF_REASON = {
    Reason.TOO_MANY_BYTES: 413,
    Reason.TOO_MANY_PIXELS: 413,
    Reason.UNSUPPORTED_FORMAT: 415,
    Reason.MISSING: 404,
    Reason.TIMEOUT: 504,
    Reason.OUT_OF_MEMORY: 503,
}


class ServiceError(EaglerayError):
    """A request that is not answered."""

    title: ClassVar[str]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class NotAllowedError(ServiceError):
    """Who asks is not known."""

    http_status = 401
    title = "A key is needed"


class ForbiddenError(ServiceError):
    """Who asks is known, and may not."""

    http_status = 403
    title = "Not allowed"


class SlowError(ServiceError):
    """A body that takes up room for too long."""

    http_status = 408
    title = "Too slow"


class NotFinishedError(ServiceError):
    """What is asked for is there only later."""

    http_status = 409
    title = "Not finished"


class TooLargeError(ServiceError):
    """More than is taken."""

    http_status = 413
    title = "Too large"


class UnsupportedError(ServiceError):
    """A body of a kind that is not taken."""

    http_status = 415
    title = "Unsupported content"


class FullError(ServiceError):
    """No room now.

    Attributes:
        retry_after: Seconds after which another try makes sense.
    """

    http_status = 429
    title = "Busy"

    def __init__(self, detail: str, *, retry_after: float) -> None:
        super().__init__(f"{detail}; try again in {retry_after:.1f} s.")
        self.retry_after = retry_after


class NotReadyError(ServiceError):
    """The version is being loaded, or failed to load."""

    http_status = 503
    title = "Not ready"

    def __init__(self, detail: str, *, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class DeadlineError(ServiceError):
    """The caller's time is over."""

    http_status = 504
    title = "Too late"


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal, ready for the wire.

    Attributes:
        status: Of HTTP.
        kind: Last part of the problem's type.
        title: Of the kind.
        detail: Of this request.
        reason: An image's reason code.
        retry_after: Seconds.
    """

    status: int
    kind: str
    title: str
    detail: str
    reason: str | None = None
    retry_after: float | None = None

    def as_json(self, *, request_id: str) -> dict[str, Any]:
        """Return the members of the problem document."""
        members: dict[str, Any] = {
            "type": f"/problems/{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.reason is not None:
            members["reason"] = self.reason
        return members

    def headers(self) -> dict[str, str]:
        """Return the headers that go with it."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(math.ceil(self.retry_after))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


class _Outages:
    """Logs each outage that requests meet, but not once for every request."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}

    def note(self, error: Exception) -> None:
        """Log an error, unless it was logged just now."""
        words, now = str(error), time.monotonic()
        if now - self._logged.get(words, -math.inf) < _SECONDS_BETWEEN_LINES:
            return
        if len(self._logged) >= _MAX_LINES_KEPT:
            self._logged.clear()
        self._logged[words] = now
        log.error("a request cannot be answered: %s", words)


_outages = _Outages()


def problem_of(error: EaglerayError) -> Problem:
    """Describe an error of Eagleray to a caller, and log what the caller is not told."""
    if type(error) is UserError:
        error = OutageError(str(error))
    if isinstance(error, OutageError):
        _outages.note(error)
        return Problem(
            error.http_status, "outage", error.title, error.public, retry_after=error.retry_after
        )
    if isinstance(error, BadImageError):
        status = _STATUS_OF_REASON.get(error.reason, 400)
        title = "The image cannot be used"
        return Problem(status, "image", title, error.message, reason=error.reason.value)
    kind = type(error).__name__.removesuffix("Error").lower()
    title = getattr(error, "title", HTTPStatus(error.http_status).phrase)
    retry_after = getattr(error, "retry_after", None)
    return Problem(error.http_status, kind, title, str(error), retry_after=retry_after)


def public_fault(error: Exception) -> str:
    """Say why a version does not load, without places and addresses, which the log has."""
    if isinstance(error, UnknownNameError | UnknownVersionError):
        return str(error)
    if isinstance(error, OutageError):
        return error.public
    if isinstance(error, PackageError):
        return "Its package is refused; the service's log says why."
    return "It cannot be loaded; the service's log says why."


def without_places(text: str, shown: Sequence[str]) -> str:
    """Return a sentence without the paths and URIs of the service that it names.

    Args:
        text: Of a job or a library, which knows nothing of callers.
        shown: Locations that the caller named itself, and may see again.
    """
    folders = tuple(place.rstrip("/") for place in shown)

    def replaced(found: re.Match[str]) -> str:
        place = found[0]
        own = any(place == folder or place.startswith(f"{folder}/") for folder in folders)
        return place if own or place.rstrip(".") in folders else _HIDDEN

    return _PLACE.sub(replaced, text)
