"""Storage errors: which of them pass and are tried again, and how the rest are said.

Every call to a remote storage is tried up to 12 times, each try after a random wait of up to
0.2, 0.4, 0.8 … 10 seconds (about half a minute in all), and none begins later than three minutes
after the first. When one call in ten fails, one in 10^12 gives up. The retries of botocore and s3fs
are turned off, because attempts of layers multiply; aiohttp alone repeats a request once, unseen,
when a connection that was kept turns out to be closed. A storage that has not answered this process
yet, and cannot be connected to, is tried three times only.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from eagleray.core.errors import EaglerayError, InputError
from eagleray.io.storage.locations import name_of

__all__ = [
    "StorageUnavailableError",
    "asking",
    "error_code",
    "is_transient",
    "patiently",
    "retry_local",
    "wrap_as_os_error",
]

_ATTEMPTS = 12
_ATTEMPTS_TO_CONNECT = 3
_LAST_ATTEMPT_BEFORE = 180.0
_FIRST_WAIT = 0.2
_LONGEST_WAIT = 10.0
_LOCAL_ATTEMPTS = 4

# What S3 and its relatives call "too fast" or "not now". A conditional put that meets another one
# is answered ConditionalRequestConflict: nobody has won yet, so it is asked again.
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
_LOCAL_TRANSIENT_ERRNO = frozenset({errno.EIO, errno.ESTALE, errno.EREMOTEIO})
_DENIED_STATUS = frozenset({401, 403})

# File systems that have answered this process, by their hash (which names the process too).
_answered: set[int] = set()

T = TypeVar("T")


class StorageUnavailableError(OSError):
    """Faults of a kind that passes went on through every attempt: the storage is at fault."""


def patiently(filesystem: Any, call: Callable[[], T]) -> T:
    """Call a remote storage, again when a fault is of a kind that passes.

    Args:
        filesystem: The fsspec file system that is called.
        call: May run several times; what a lost answer has done before, stays done.

    Raises:
        StorageUnavailableError: It went on.
        Exception: Whatever else the storage answers, at once.
    """
    known = hash(filesystem)

    def attempt() -> T:
        try:
            result = call()
        except Exception as error:
            if not _is_out_of_reach(error):
                _answered.add(known)
            raise
        _answered.add(known)
        return result

    def is_enough(state: RetryCallState) -> bool:
        if state.attempt_number >= _ATTEMPTS or (state.seconds_since_start or 0) >= (
            _LAST_ATTEMPT_BEFORE
        ):
            return True
        error = state.outcome.exception() if state.outcome else None
        return (
            state.attempt_number >= _ATTEMPTS_TO_CONNECT
            and known not in _answered
            and error is not None
            and _is_out_of_reach(error)
        )

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=is_enough,
        wait=wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT),
        retry_error_callback=_give_up,
    )
    result: T = retrying(attempt)
    return result


def _give_up(state: RetryCallState) -> Any:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    raise StorageUnavailableError(
        f"{_reason(error)}, {state.attempt_number} times in {state.seconds_since_start or 0:.0f} s"
    ) from error


def retry_local(call: Callable[[], T]) -> T:
    """Read from a mounted file system, a few times more when a network mount stumbles."""
    retrying = Retrying(
        retry=retry_if_exception(
            lambda error: isinstance(error, OSError) and error.errno in _LOCAL_TRANSIENT_ERRNO
        ),
        stop=stop_after_attempt(_LOCAL_ATTEMPTS),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT, max=1.0),
        reraise=True,
    )
    result: T = retrying(call)
    return result


def is_transient(error: BaseException) -> bool:
    """Whether a fault of a remote storage is of a kind that passes by itself.

    Server errors, throttling, connections refused, reset or silent, and answers cut short are.
    Files that are not there, permissions, credentials and buckets are not.
    """
    if _is_of_http_client(error):
        return not _is_about_certificates(error)
    status, code = _http_answer(error)
    if status is not None or code:
        return status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES
    if isinstance(error, (FileNotFoundError, FileExistsError, PermissionError)):
        return False
    if isinstance(error, (TimeoutError, ConnectionError, http.client.IncompleteRead)):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


def _is_of_http_client(error: BaseException) -> bool:
    """Whether the client below s3fs (or gcsfs) lost its connection or half of an answer."""
    import aiohttp
    import botocore.exceptions  # type: ignore[import-untyped]
    import botocore.parsers  # type: ignore[import-untyped]
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


def _is_about_certificates(error: BaseException) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def _is_out_of_reach(error: BaseException) -> bool:
    """Whether there was no connection at all, so that perhaps nothing is there."""
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


def _http_answer(error: BaseException) -> tuple[int | None, str]:
    """The HTTP status and S3 code behind an error; s3fs keeps them in the cause."""
    link: BaseException | None = error
    while link is not None:
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = str(response.get("Error", {}).get("Code", ""))
            return status or (int(code) if code.isdecimal() else None), code
        link = link.__cause__
    for name in ("status", "status_code", "code"):  # of gcsfs, adlfs and others
        status = getattr(error, name, None)
        if isinstance(status, int):
            return status, ""
    return None, ""


def error_code(error: BaseException) -> str:
    """The S3 code behind an error (`NoSuchBucket`, `InvalidRange`, …), or its HTTP status."""
    status, code = _http_answer(error)
    return code or (str(status) if status else "")


@contextlib.contextmanager
def wrap_as_os_error(location: str) -> Iterator[None]:
    """Make an `OSError` of whatever a storage library raises: our callers know that one."""
    try:
        yield
    except (OSError, EaglerayError):
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        raise OSError(f"{name_of(location)}: {type(error).__name__}: {text}") from error


@contextlib.contextmanager
def asking(location: str) -> Iterator[None]:
    """Say in one sentence that a place named by the user does not answer.

    Raises:
        InputError: Whatever the storage raises.
    """
    try:
        with wrap_as_os_error(location):
            yield
    except OSError as error:
        raise InputError(
            f"Cannot look at {location} ({_reason(error)}); check its name, the credentials and "
            "the endpoint."
        ) from error


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words."""
    status, code = _http_answer(error)
    if code == "NoSuchBucket":
        return "there is no such bucket"
    if isinstance(error, PermissionError) or status in _DENIED_STATUS:
        return f"access is denied{f': {code}' if code and not code.isdecimal() else ''}"
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
