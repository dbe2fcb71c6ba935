"""An S3 server with an empty bucket, and credentials for every process that is started."""

from __future__ import annotations

import contextlib
import os
import urllib.request
from collections.abc import Iterator

from tests.support.s3_server import moto_server

BUCKET = "chaos"


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Start a server with an empty bucket; gives its endpoint.

    The environment gets credentials that it accepts, for every process started from here on.
    """
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with moto_server() as endpoint:
        new_bucket = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(new_bucket).close()
        yield endpoint
