"""Transient storage errors are told from permanent ones."""

from __future__ import annotations

import errno
import http.client

import aiohttp
import botocore.exceptions
import pytest

from eagleray.io.storage.errors import is_transient
from tests.support.s3_faults import s3_error


class HttpError(Exception):
    """What clients of other object stores raise."""

    def __init__(self, code: int) -> None:
        super().__init__("text")
        self.code = code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (s3_error("SlowDown", 503), True),
        (s3_error("503", 503), True),
        (s3_error("InternalError", 500), True),
        (s3_error("500", 500), True),
        (s3_error("BadGateway", 502), True),
        (s3_error("504", 504), True),
        (s3_error("TooManyRequests", 429), True),
        (s3_error("429", 429), True),
        (s3_error("RequestTimeout", 400), True),
        (s3_error("ThrottlingException", 400), True),
        (s3_error("ConditionalRequestConflict", 409), True),
        (s3_error("OperationAborted", 409), True),
        (s3_error("NoSuchKey", 404), False),
        (s3_error("404", 404), False),
        (s3_error("NoSuchBucket", 404), False),
        (s3_error("AccessDenied", 403), False),
        (s3_error("403", 403), False),
        (s3_error("InvalidAccessKeyId", 403), False),
        (s3_error("SignatureDoesNotMatch", 403), False),
        (s3_error("ExpiredToken", 400), False),
        (s3_error("PreconditionFailed", 412), False),
        (s3_error("InvalidRange", 416), False),
        (s3_error("NotImplemented", 501), False),
        (s3_error("InvalidBucketName", 400), False),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://a"), True),
        (botocore.exceptions.ConnectTimeoutError(endpoint_url="http://a"), True),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://a"), True),
        (botocore.exceptions.ConnectionClosedError(endpoint_url="http://a"), True),
        (botocore.exceptions.SSLError(endpoint_url="a", error="EOF occurred"), True),
        (botocore.exceptions.SSLError(endpoint_url="a", error="CERTIFICATE_VERIFY_FAILED"), False),
        (botocore.exceptions.NoCredentialsError(), False),
        (botocore.exceptions.ParamValidationError(report="name"), False),
        (botocore.exceptions.ProfileNotFound(profile="p"), False),
        (aiohttp.ClientPayloadError("cut short"), True),
        (aiohttp.ServerDisconnectedError(), True),
        (http.client.IncompleteRead(b""), True),
        (TimeoutError(), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (OSError(errno.EBUSY, "busy"), True),
        (OSError(errno.EIO, "i/o"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (FileNotFoundError(errno.ENOENT, "none"), False),
        (PermissionError(errno.EACCES, "no"), False),
        (IsADirectoryError(errno.EISDIR, "folder"), False),
        (HttpError(503), True),
        (HttpError(404), False),
        (ValueError("text"), False),
        (KeyError("text"), False),
    ],
    ids=repr,
)
def test_only_transient_errors_are_retried(error: BaseException, expected: bool) -> None:
    assert is_transient(error) is expected


def test_a_truncated_response_is_transient_for_every_cause() -> None:
    error = aiohttp.ClientPayloadError("cut short")
    error.__cause__ = aiohttp.http_exceptions.ContentLengthError("10 of 20")  # has a code: 400
    assert is_transient(error)
