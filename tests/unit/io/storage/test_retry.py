"""Transient errors are retried within limits, and others are raised at once."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from eagleray.io import storage
from eagleray.io.storage import StorageUnavailableError, retry
from eagleray.io.storage.retry import RetryPolicy, retry_remote
from tests.support.s3_faults import s3_error

QUICK = RetryPolicy(first_wait=0.001, max_wait=0.002)


class Flaky:
    """A file system that fails some times before it answers."""

    def __init__(self, error: BaseException, times: int) -> None:
        self.left = times
        self.num_calls = 0
        self._error = error

    def call(self) -> str:
        self.num_calls += 1
        self.left -= 1
        if self.left >= 0:
            raise self._error
        return "answer"


@pytest.mark.parametrize(
    ("error", "times", "num_calls", "expected"),
    [
        (s3_error("SlowDown", 503), 11, 12, None),
        (s3_error("SlowDown", 503), 12, 12, StorageUnavailableError),
        (s3_error("NoSuchKey", 404), 1, 1, FileNotFoundError),
        (s3_error("AccessDenied", 403), 1, 1, PermissionError),
        (ValueError("text"), 1, 1, ValueError),
        # The storage has never responded, so the endpoint may be wrong.
        (botocore.exceptions.EndpointConnectionError(endpoint_url="a"), 2, 3, None),
        (
            botocore.exceptions.EndpointConnectionError(endpoint_url="a"),
            3,
            3,
            StorageUnavailableError,
        ),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="a"), 11, 12, None),
    ],
)
def test_retries_have_an_end(
    error: BaseException, times: int, num_calls: int, expected: type[Exception] | None
) -> None:
    flaky = Flaky(error, times)
    if expected is None:
        assert retry_remote(flaky, flaky.call, QUICK) == "answer"
    else:
        with pytest.raises(expected):
            retry_remote(flaky, flaky.call, QUICK)
    assert flaky.num_calls == num_calls


def test_a_storage_that_has_responded_is_retried_longer() -> None:
    flaky = Flaky(botocore.exceptions.EndpointConnectionError(endpoint_url="a"), 0)
    assert retry_remote(flaky, flaky.call, QUICK) == "answer"
    flaky.left = 11
    assert retry_remote(flaky, flaky.call, QUICK) == "answer"


def test_no_attempt_starts_after_the_deadline() -> None:
    flaky = Flaky(s3_error("SlowDown", 503), 99)
    with pytest.raises(StorageUnavailableError, match=r"^text, 1 times in 0 s$"):
        retry_remote(flaky, flaky.call, RetryPolicy(max_seconds=0.0))


@pytest.mark.parametrize(("times", "expected"), [(3, b"1"), (4, None)])
def test_reads_from_a_network_mount_are_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, expected: bytes | None
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    flaky = Flaky(OSError(errno.ESTALE, "Stale file handle"), times)
    opened = Path.open

    def stumble(path: Path, *arguments: Any) -> Any:
        flaky.call()
        return opened(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(retry, "LOCAL", replace(QUICK, max_attempts=4))
        patch.setattr(Path, "open", stumble)
        if expected is None:
            with pytest.raises(OSError, match="Stale file handle"):
                storage.read_bytes(str(tmp_path / "a"))
        else:
            assert storage.read_bytes(str(tmp_path / "a")) == expected
    assert flaky.num_calls == 4
