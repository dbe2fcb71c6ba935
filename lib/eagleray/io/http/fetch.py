"""Fetches the bytes of one URL, with redirects, limits, retries and errors as `OSError`."""

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
from tenacity.wait import wait_base
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
from eagleray.io.http.connections import (
    Resolver,
    current_fetch,
    fetch_context,
    pool_for,
    shorter_deadline,
)
from eagleray.io.http.policy import UrlPolicy
from eagleray.io.http.urls import Target

__all__ = ["BACKOFF", "NO_RETRY", "fetch_url", "parse_retry_after", "wrap_errors"]

BACKOFF = wait_random_exponential(multiplier=0.25, max=8)
"""Random waits before further attempts, in seconds."""

_MAX_ATTEMPTS = 4
_MAX_RETRY_AFTER = 30  # seconds
NO_RETRY = Retry(False, redirect=False)
"""urllib3's own retries are off: it could not repeat the reading of a body."""

_CHUNK_BYTES = 64 * 1024
_ERROR_BODY_SECONDS = 1.0  # to read an error page, so that its connection can be reused

_COMPRESSIONS = frozenset({"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"})


class _BusyError(OSError):
    """The server is overloaded or failing; `wait` is its `Retry-After` in seconds, or 0."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


_TRANSIENT = (
    _BusyError,
    TimeoutError,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
)
_CONNECTION_LOST = (
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    http.client.IncompleteRead,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
)


def fetch_url(
    url: str,
    policy: UrlPolicy,
    *,
    limit: int,
    backoff: wait_base = BACKOFF,
    resolver: Resolver | None = None,
) -> bytes:
    """Fetch the content of an http(s) URL, at most its first `limit` bytes.

    429, 5xx, resets and time-outs are retried within the policy's `total_seconds`. Name resolution
    takes as long as the system's resolver allows. Content is never decompressed. Messages contain
    neither the URL's path nor its query.

    Args:
        url: The URL.
        policy: What may be fetched, and within which limits.
        limit: Maximum number of bytes.
        backoff: Waits between attempts.
        resolver: Resolves host names; None for the system's.

    Raises:
        InputError: If the policy does not allow the URL, an address of its host, or a redirect.
        FileNotFoundError: If the server responds 404 or 410.
        PermissionError: If the server responds 401 or 403.
        TimeoutError: If the server is silent for too long, or the fetch takes too long.
        OSError: If anything else fails.
    """
    assert limit >= 0
    target = policy.target(url)
    retrying = Retrying(
        retry=retry_if_exception_type(_TRANSIENT),
        wait=lambda state: max(_retry_after_of(state), backoff(state)),
        stop=stop_after_attempt(_MAX_ATTEMPTS) | stop_before_delay(policy.total_seconds),
        reraise=True,
    )
    with fetch_context(policy, resolver):
        return retrying(_follow, target, limit)


def _retry_after_of(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return error.wait if isinstance(error, _BusyError) else 0.0


def _follow(target: Target, limit: int) -> bytes:
    first = target.host
    max_redirects = current_fetch().policy.max_redirects
    for _ in range(max_redirects + 1):
        with _request(target) as response:
            location = response.get_redirect_location()
            if not location:
                _check_response(response, target.host)
                return _read(response, limit)
        target = _redirected(target, location)
    raise OSError(f"{first} redirects more than {max_redirects} times")


@contextlib.contextmanager
def _request(target: Target) -> Iterator[BaseHTTPResponse]:
    """Send a request, and release the connection at the end; it stays open if nothing is unread."""
    with wrap_errors(target):
        response = pool_for(target).urlopen(
            "GET",
            target.path,
            retries=NO_RETRY,
            redirect=False,
            pool_timeout=math.ceil(current_fetch().remaining()),
            preload_content=False,
            decode_content=False,
        )
        try:
            yield response
        finally:
            if response.status != http.HTTPStatus.OK:
                _drain_error_body(response)
            response.close()
            response.release_conn()


def _drain_error_body(response: BaseHTTPResponse) -> None:
    with contextlib.suppress(HTTPError, OSError), shorter_deadline(_ERROR_BODY_SECONDS):
        _read(response, _CHUNK_BYTES)


def _read(response: BaseHTTPResponse, limit: int) -> bytes:
    chunks = []
    while limit > 0:
        # `read1` receives once, whereas `read` waits for all bytes, however slowly they arrive.
        chunk = response.read1(min(limit, _CHUNK_BYTES))
        if not chunk:
            break
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


def _redirected(target: Target, location: str) -> Target:
    """Return the target of a redirect.

    Raises:
        InputError: If the policy does not allow it, or it is not a URL.
    """
    with contextlib.suppress(UnicodeError):  # header fields are read as Latin-1; many are UTF-8
        location = location.encode("latin-1").decode("utf-8")
    try:
        # The result of `urljoin` is both checked and requested.
        return current_fetch().policy.target(urljoin(target.url, location))
    except InputError as error:
        raise InputError(
            f"{target.host} redirects, and the redirect is not followed: {error}"
        ) from None
    except ValueError:
        raise InputError(f"{target.host} redirects to an invalid URL.") from None


def _check_response(response: BaseHTTPResponse, host: str) -> None:
    """Check that a response has an uncompressed body.

    Raises:
        FileNotFoundError: If the status is 404 or 410.
        PermissionError: If the status is 401 or 403.
        OSError: If it is any other status but 200, or the body is compressed.
    """
    status = response.status
    message = f"{host} responds {status}"
    if status in (404, 410):
        raise FileNotFoundError(message)
    if status in (401, 403):
        raise PermissionError(message)
    if status in (408, 429) or status >= 500:
        raise _BusyError(message, parse_retry_after(response.headers.get("Retry-After")))
    if status != http.HTTPStatus.OK:
        raise OSError(f"{message} instead of an image")
    encoding = response.headers.get("Content-Encoding", "").lower()
    if not _COMPRESSIONS.isdisjoint(re.split(r"[\s,]+", encoding)):
        raise OSError(f"{host} sends compressed content although none was requested")


def parse_retry_after(header: str | None) -> float:
    """Parse a `Retry-After` header to seconds, capped; 0 if it is missing or invalid."""
    if header is None:
        return 0.0
    try:
        return Retry(retry_after_max=_MAX_RETRY_AFTER).parse_retry_after(header)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


@contextlib.contextmanager
def wrap_errors(target: Target) -> Iterator[None]:
    """Turn urllib3's errors into `OSError`, without the URL that they contain."""
    try:
        yield
    except HTTPError as error:
        raise _as_os_error(error, target) from None


def _as_os_error(error: HTTPError, target: Target) -> OSError:
    arguments = (value for value in error.args if isinstance(value, Exception))
    cause = error.__cause__ or next(arguments, error)
    kind: type[OSError] = OSError
    if isinstance(error, ReadTimeoutError | EmptyPoolError) or isinstance(cause, TimeoutError):
        kind, text = TimeoutError, "does not respond in time"
    elif isinstance(error, NameResolutionError):
        transient = isinstance(cause, OSError) and cause.errno == socket.EAI_AGAIN
        kind, text = (TimeoutError if transient else OSError), "cannot be resolved to an address"
    elif isinstance(cause, ssl.SSLCertVerificationError):
        text = f"has a certificate that is not accepted ({cause.verify_message})"
    elif isinstance(cause, ConnectionRefusedError):
        kind, text = ConnectionRefusedError, f"refuses connections on port {target.port}"
    elif isinstance(cause, _CONNECTION_LOST):
        kind, text = ConnectionResetError, "closes the connection early"
    elif isinstance(cause, OSError) and cause.strerror:
        text = f"cannot be read ({cause.strerror})"
    else:
        text = f"cannot be read ({type(cause).__name__})"
    return kind(f"{target.host} {text}")
