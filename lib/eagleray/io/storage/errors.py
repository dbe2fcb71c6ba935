"""Classifies storage errors, and wraps those of storage libraries as `OSError` or `InputError`."""

from __future__ import annotations

import contextlib
import errno
import http.client
from collections.abc import Iterator

from eagleray.core.errors import EaglerayError, InputError
from eagleray.io.storage.locations import name_of

__all__ = [
    "StorageUnavailableError",
    "describe_error",
    "error_code",
    "is_connection_failure",
    "is_transient",
    "wrap_as_input_error",
    "wrap_as_os_error",
]

# Codes of S3 and compatible servers for throttling and passing failures. A conditional put that
# races with another one gets ConditionalRequestConflict: neither has won yet, so it is retried.
_TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
        "XAmzContentSHA256Mismatch",
    }
)
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
_TRANSIENT_ERRNO = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EIO,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.EREMOTEIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
_DENIED_STATUS = frozenset({401, 403})


class StorageUnavailableError(OSError):
    """A transient error persisted through every attempt: the storage is at fault, not the file."""


def is_transient(error: BaseException) -> bool:
    """Whether an error of a remote storage is worth a retry.

    Server errors, throttling, refused or reset connections, time-outs and truncated responses are.
    Missing files, permissions, credentials and buckets are not.
    """
    if _is_http_client_error(error):
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    status, code = _status_and_code(error)
    if status is not None or code:
        return status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES
    if isinstance(error, (FileNotFoundError, FileExistsError, PermissionError)):
        return False
    if isinstance(error, (TimeoutError, ConnectionError, http.client.IncompleteRead)):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


def is_connection_failure(error: BaseException) -> bool:
    """Whether no connection was established at all, as with a wrong endpoint."""
    import aiohttp
    import botocore.exceptions

    return isinstance(
        error,
        (
            ConnectionRefusedError,
            aiohttp.ClientConnectorError,
            botocore.exceptions.ConnectTimeoutError,
            botocore.exceptions.EndpointConnectionError,
            botocore.exceptions.ProxyConnectionError,
        ),
    )


def _is_http_client_error(error: BaseException) -> bool:
    """Whether the HTTP client below s3fs or gcsfs lost its connection or part of a response."""
    import aiohttp
    import botocore.exceptions
    import botocore.parsers
    from fsspec.exceptions import FSTimeoutError

    return isinstance(
        error,
        (
            aiohttp.ClientConnectionError,
            aiohttp.ClientPayloadError,
            botocore.exceptions.ConnectionError,
            botocore.exceptions.HTTPClientError,
            botocore.exceptions.IncompleteReadError,
            botocore.parsers.ResponseParserError,
            FSTimeoutError,
        ),
    )


def _status_and_code(error: BaseException) -> tuple[int | None, str]:
    """Return the HTTP status and S3 code of an error; s3fs keeps them in the error's cause."""
    link: BaseException | None = error
    while link is not None:
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = str(response.get("Error", {}).get("Code", ""))
            return status or (int(code) if code.isdecimal() else None), code
        link = link.__cause__
    for name in ("status", "status_code", "code"):  # attributes of gcsfs, adlfs and others
        status = getattr(error, name, None)
        if isinstance(status, int):
            return status, ""
    return None, ""


def error_code(error: BaseException) -> str:
    """Return the S3 code of an error (`NoSuchBucket`, `InvalidRange`, …), or its HTTP status."""
    status, code = _status_and_code(error)
    return code or (str(status) if status else "")


def describe_error(error: BaseException) -> str:
    """Describe an error in a few words."""
    status, code = _status_and_code(error)
    if code == "NoSuchBucket":
        return "there is no such bucket"
    if isinstance(error, PermissionError) or status in _DENIED_STATUS:
        return f"access is denied{f': {code}' if code and not code.isdecimal() else ''}"
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def wrap_as_os_error(location: str) -> Iterator[None]:
    """Turn whatever a storage library raises into an `OSError`."""
    try:
        yield
    except (OSError, EaglerayError):
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        raise OSError(f"{name_of(location)}: {type(error).__name__}: {text}") from error


@contextlib.contextmanager
def wrap_as_input_error(location: str) -> Iterator[None]:
    """Turn whatever a storage library raises into one sentence about a location of the user.

    Raises:
        InputError: If the storage raises anything.
    """
    try:
        with wrap_as_os_error(location):
            yield
    except OSError as error:
        raise InputError(
            f"Cannot access {location} ({describe_error(error)}); check its name, the credentials "
            "and the endpoint."
        ) from error
