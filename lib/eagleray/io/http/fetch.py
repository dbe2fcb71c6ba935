"""One URL to bytes: redirects, limits, retries, and every failure as an `OSError`."""

from __future__ import annotations

import contextlib
import http.client
import math
import re
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urljoin

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import (
    EmptyPoolError,
    HTTPError,
    InvalidHeader,
    NameResolutionError,
    ReadTimeoutError,
)
from urllib3.util import Retry

from eagleray.core.errors import InputError
from eagleray.io.http.connections import current_fetch, fetch_context, pool_for, shorter_deadline
from eagleray.io.http.policy import UrlPolicy
from eagleray.io.http.urls import Target

__all__ = ["fetch_url"]

_ATTEMPTS = 4
_LONGEST_WAIT = 30  # seconds, whatever a Retry-After asks for
_backoff = wait_random_exponential(multiplier=0.25, max=8)
_NOT_BY_URLLIB3 = Retry(False, redirect=False)  # it could not repeat the reading of a body

_PIECE = 64 * 1024  # bytes read at a time
_GRACE = 1.0  # seconds to read an error page, so that its connection can be used again

_COMPRESSIONS = frozenset({"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"})


class _BusyError(OSError):
    """The server asks to come again, after `wait` seconds where it says so."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


_PASSING = (
    _BusyError,
    TimeoutError,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
)
_BROKEN = (
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    http.client.IncompleteRead,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
)


def fetch_url(url: str, policy: UrlPolicy, *, limit: int) -> bytes:
    """Read what is behind an http(s) URL, at most its first `limit` bytes.

    429, 5xx, resets and time-outs are tried again, within the policy's `total_seconds`. Name
    resolution takes as long as the system's resolver allows. Content is taken as it is sent:
    nothing is decompressed. Messages repeat neither the URL's path nor its query.

    Raises:
        InputError: The policy refuses the URL, an address behind its name, or a redirect.
        FileNotFoundError: The server answers 404 or 410.
        PermissionError: The server answers 401 or 403.
        TimeoutError: The server is silent for too long, or the whole takes too long.
        OSError: Anything else that goes wrong.
    """
    assert limit >= 0
    target = policy.target(url)
    again = Retrying(
        retry=retry_if_exception_type(_PASSING),
        wait=_wait,
        stop=stop_after_attempt(_ATTEMPTS) | stop_before_delay(policy.total_seconds),
        reraise=True,
    )
    with fetch_context(policy):
        return again(_follow, target, limit)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, _BusyError) else 0.0
    return max(asked, _backoff(state))


def _follow(target: Target, limit: int) -> bytes:
    first = target.host
    max_redirects = current_fetch().policy.max_redirects
    for _ in range(max_redirects + 1):
        with _answer(target) as response:
            location = response.get_redirect_location()
            if not location:
                _check(response, target.host)
                return _read(response, limit)
        target = _redirected(target, location)
    raise OSError(f"{first} redirects more than {max_redirects} times")


@contextlib.contextmanager
def _answer(target: Target) -> Iterator[BaseHTTPResponse]:
    """Ask, and in the end give the connection back: open when nothing is left unread in it."""
    with _one_kind_of_error(target):
        response = pool_for(target).urlopen(
            "GET",
            target.path,
            retries=_NOT_BY_URLLIB3,
            redirect=False,
            pool_timeout=math.ceil(current_fetch().remaining()),
            preload_content=False,
            decode_content=False,
        )
        try:
            yield response
        finally:
            if response.status != http.HTTPStatus.OK:
                _read_small_page(response)
            response.close()
            response.release_conn()


def _read_small_page(response: BaseHTTPResponse) -> None:
    with contextlib.suppress(HTTPError, OSError), shorter_deadline(_GRACE):
        _read(response, _PIECE)


def _read(response: BaseHTTPResponse, limit: int) -> bytes:
    pieces = []
    while limit > 0:
        # One receive for each: `read` waits for all of its bytes, however slowly they come.
        piece = response.read1(min(limit, _PIECE))
        if not piece:
            break
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def _redirected(target: Target, location: str) -> Target:
    """Return where a redirect leads.

    Raises:
        InputError: Where the policy does not.
    """
    with contextlib.suppress(UnicodeError):  # header fields are read as Latin-1; many are UTF-8
        location = location.encode("latin-1").decode("utf-8")
    try:
        # What `urljoin` makes of it is what is judged, and what is asked for.
        return current_fetch().policy.target(urljoin(target.url, location))
    except InputError as error:
        raise InputError(f"{target.host} redirects, and it is not followed: {error}") from None
    except ValueError:
        raise InputError(f"{target.host} redirects to what is no URL.") from None


def _check(response: BaseHTTPResponse, host: str) -> None:
    """Let an uncompressed body through.

    Raises:
        FileNotFoundError: 404 and 410.
        PermissionError: 401 and 403.
        OSError: Any other answer.
    """
    status = response.status
    answers = f"{host} answers {status}"
    if status in (404, 410):
        raise FileNotFoundError(answers)
    if status in (401, 403):
        raise PermissionError(answers)
    if status in (408, 429) or status >= 500:
        raise _BusyError(answers, _retry_after(response.headers.get("Retry-After")))
    if status != http.HTTPStatus.OK:
        raise OSError(f"{answers} instead of an image")
    encoding = response.headers.get("Content-Encoding", "").lower()
    if not _COMPRESSIONS.isdisjoint(re.split(r"[\s,]+", encoding)):
        raise OSError(f"{host} sends compressed content although none was asked for")


def _retry_after(header: str | None) -> float:
    """Return the seconds that a server asks to wait, capped; 0 where it says nothing readable."""
    if header is None:
        return 0.0
    try:
        return Retry(retry_after_max=_LONGEST_WAIT).parse_retry_after(header)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


@contextlib.contextmanager
def _one_kind_of_error(target: Target) -> Iterator[None]:
    """Make an `OSError` of whatever urllib3 raises, without the URL that its errors carry."""
    try:
        yield
    except HTTPError as error:
        raise _as_os_error(error, target) from None


def _as_os_error(error: HTTPError, target: Target) -> OSError:
    within = (value for value in error.args if isinstance(value, Exception))
    cause = error.__cause__ or next(within, error)
    kind: type[OSError] = OSError
    if isinstance(error, ReadTimeoutError | EmptyPoolError) or isinstance(cause, TimeoutError):
        kind, says = TimeoutError, "does not answer in time"
    elif isinstance(error, NameResolutionError):
        passing = isinstance(cause, OSError) and cause.errno == socket.EAI_AGAIN
        kind, says = (TimeoutError if passing else OSError), "is not a name with an address"
    elif isinstance(cause, ssl.SSLCertVerificationError):
        says = f"shows a certificate that is not accepted ({cause.verify_message})"
    elif isinstance(cause, ConnectionRefusedError):
        kind, says = ConnectionRefusedError, f"refuses connections on port {target.port}"
    elif isinstance(cause, _BROKEN):
        kind, says = ConnectionResetError, "breaks the connection off"
    elif isinstance(cause, OSError) and cause.strerror:
        says = f"cannot be read ({cause.strerror})"
    else:
        says = f"cannot be read ({type(cause).__name__})"
    return kind(f"{target.host} {says}")
