"""Retries storage calls after transient errors, with exponential backoff and full jitter.

A remote call is tried up to 12 times, each time after a random wait of up to 0.2, 0.4, 0.8 … 10
seconds (about half a minute in all), and no attempt starts later than three minutes after the
first. When one call in ten fails, one in 10^12 gives up. The retries of botocore and s3fs are
turned off, because attempts of several layers multiply; aiohttp alone repeats a request once when a
kept-alive connection turns out to be closed. A storage that has not responded to this process yet
and cannot be connected to is tried three times only.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from eagleray.io.storage.errors import (
    StorageUnavailableError,
    describe_error,
    is_connection_failure,
    is_transient,
)

__all__ = ["LOCAL", "REMOTE", "RetryPolicy", "retry_local", "retry_remote"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long a call is retried.

    Attributes:
        max_attempts: Maximum number of attempts.
        max_connection_attempts: Maximum number of attempts to reach a storage that has never
            responded to this process.
        max_seconds: Seconds after the first attempt at which no further one starts.
        first_wait: Upper bound of the first random wait in seconds; it doubles with each attempt.
        max_wait: Largest upper bound of a wait in seconds.
    """

    max_attempts: int = 12
    max_connection_attempts: int = 3
    max_seconds: float = 180.0
    first_wait: float = 0.2
    max_wait: float = 10.0

    @property
    def wait(self) -> wait_random_exponential:
        """The random wait before each further attempt."""
        return wait_random_exponential(multiplier=self.first_wait, max=self.max_wait)


REMOTE = RetryPolicy()
"""How calls to remote storage are retried by default."""
LOCAL = RetryPolicy(max_attempts=4, max_wait=1.0)
"""How calls to mounted file systems are retried by default."""

_LOCAL_TRANSIENT_ERRNO = frozenset({errno.EIO, errno.ESTALE, errno.EREMOTEIO})

# Hashes of the file systems that have responded to this process (fsspec's include the process).
_responsive: set[int] = set()


def retry_remote(filesystem: Any, call: Callable[[], T], policy: RetryPolicy | None = None) -> T:
    """Call a remote storage, and retry after transient errors.

    Args:
        filesystem: fsspec file system that is called.
        call: The call. It may run several times, also after an attempt whose response was lost.
        policy: How it is retried; `REMOTE` by default.

    Raises:
        StorageUnavailableError: If transient errors persist.
        Exception: Any other error of the storage, immediately.
    """
    limits = policy or REMOTE
    key = hash(filesystem)

    def attempt() -> T:
        try:
            result = call()
        except Exception as error:
            if not is_connection_failure(error):
                _responsive.add(key)
            raise
        _responsive.add(key)
        return result

    def stop(state: RetryCallState) -> bool:
        elapsed = state.seconds_since_start or 0
        if state.attempt_number >= limits.max_attempts or elapsed >= limits.max_seconds:
            return True
        error = state.outcome.exception() if state.outcome else None
        return (
            state.attempt_number >= limits.max_connection_attempts
            and key not in _responsive
            and error is not None
            and is_connection_failure(error)
        )

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop,
        wait=limits.wait,
        retry_error_callback=_give_up,
    )
    result: T = retrying(attempt)
    return result


def _give_up(state: RetryCallState) -> Any:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    raise StorageUnavailableError(
        f"{describe_error(error)}, {state.attempt_number} times in "
        f"{state.seconds_since_start or 0:.0f} s"
    ) from error


def retry_local(call: Callable[[], T], policy: RetryPolicy | None = None) -> T:
    """Call a mounted file system, and retry after transient errors of a network mount."""
    limits = policy or LOCAL
    retrying = Retrying(
        retry=retry_if_exception(
            lambda error: isinstance(error, OSError) and error.errno in _LOCAL_TRANSIENT_ERRNO
        ),
        stop=stop_after_attempt(limits.max_attempts),
        wait=limits.wait,
        reraise=True,
    )
    result: T = retrying(call)
    return result
