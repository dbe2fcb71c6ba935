"""Describes refused requests as RFC 9457 problem details.

    ServiceError
    ├── NotAllowedError      no key, or an invalid one               401
    ├── ForbiddenError       the caller lacks the permission         403
    ├── NotFoundError        the resource does not exist             404
    ├── SlowError            the body arrives too slowly             408
    ├── NotFinishedError     the resource is not ready yet           409
    ├── TooLargeError        a body or a list above its limit        413
    ├── UnsupportedError     an unsupported content type             415
    ├── FullError            no room, or above the quota             429
    ├── NotReadyError        the version is not ready, or fails      503
    └── DeadlineError        the deadline has passed                 504

All other errors of Eagleray have an HTTP status too, so one function turns any of them into a
problem. Locations and addresses of the service are only logged: an `OutageError` has a separate
sentence for callers, and a plain `UserError`, which is not the caller's mistake here, has none. A
problem's `type` is a path of the service that explains it; its `title` is constant, its `detail` is
a sentence about this request.
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
    "NotFoundError",
    "NotReadyError",
    "Problem",
    "ServiceError",
    "SlowError",
    "TooLargeError",
    "UnsupportedError",
    "hide_locations",
    "problem_from_error",
    "public_fault",
]

log = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"

_SECONDS_BETWEEN_LINES = 10.0  # in the log, about one outage
_MAX_LINES_KEPT = 1000

_LOCATION = re.compile(
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
    """A request is refused."""

    title: ClassVar[str]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class NotAllowedError(ServiceError):
    """The caller is not authenticated."""

    http_status = 401
    title = "A key is needed"


class ForbiddenError(ServiceError):
    """The caller is not permitted to do this."""

    http_status = 403
    title = "Not allowed"


class NotFoundError(ServiceError):
    """The requested resource does not exist."""

    http_status = 404
    title = "Not found"


class SlowError(ServiceError):
    """The body of the request arrives too slowly."""

    http_status = 408
    title = "Too slow"


class NotFinishedError(ServiceError):
    """The requested resource is not ready yet."""

    http_status = 409
    title = "Not finished"


class TooLargeError(ServiceError):
    """The request exceeds a size limit."""

    http_status = 413
    title = "Too large"


class UnsupportedError(ServiceError):
    """The content type of the request is not supported."""

    http_status = 415
    title = "Unsupported content"


class FullError(ServiceError):
    """The service has no room for the request now.

    Attributes:
        retry_after: Seconds until a retry makes sense.
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
    """The deadline of the request has passed."""

    http_status = 504
    title = "Too late"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem document.

    Attributes:
        status: HTTP status.
        kind: Last part of the problem's type.
        title: Title of the kind.
        detail: Sentence about this request.
        reason: Reason code of an image that cannot be used; None for other problems.
        retry_after: Seconds until a retry makes sense; None if unknown.
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
        """Return the headers of the response."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(math.ceil(self.retry_after))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


class _OutageLog:
    """Logs each outage that requests meet, but not for every request."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}

    def log(self, error: Exception) -> None:
        """Log an error, unless it was logged within the last seconds."""
        message, now = str(error), time.monotonic()
        if now - self._logged.get(message, -math.inf) < _SECONDS_BETWEEN_LINES:
            return
        if len(self._logged) >= _MAX_LINES_KEPT:
            self._logged.clear()
        self._logged[message] = now
        log.error("a request cannot be fulfilled: %s", message)


_outage_log = _OutageLog()


def problem_from_error(error: EaglerayError) -> Problem:
    """Describe an error to a caller, and log what the caller must not see."""
    if type(error) is UserError:
        error = OutageError(str(error))
    if isinstance(error, OutageError):
        _outage_log.log(error)
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
    """Return why a version does not load, without locations and addresses."""
    if isinstance(error, UnknownNameError | UnknownVersionError):
        return str(error)
    if isinstance(error, OutageError):
        return error.public
    if isinstance(error, PackageError):
        return "Its package is refused; the service's log says why."
    return "It cannot be loaded; the service's log says why."


def hide_locations(text: str, shown: Sequence[str]) -> str:
    """Return a sentence with the paths and URIs of the service hidden.

    Args:
        text: Sentence of a job or a library.
        shown: Locations that the caller has named, which are not hidden.
    """
    folders = tuple(place.rstrip("/") for place in shown)

    def replaced(found: re.Match[str]) -> str:
        place = found[0]
        own = any(place == folder or place.startswith(f"{folder}/") for folder in folders)
        return place if own or place.rstrip(".") in folders else _HIDDEN

    return _LOCATION.sub(replaced, text)
