"""Posts a small body to a URL under a policy, once, and returns the status of the response."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

from urllib3.exceptions import HTTPError

from eagleray.io.http.connections import Resolver, current_fetch, fetch_context, pool_for
from eagleray.io.http.fetch import NO_RETRY, wrap_errors
from eagleray.io.http.policy import UrlPolicy

__all__ = ["post_url"]

_MAX_READ = 64 * 1024  # bytes of a response, which is read so that its connection can be reused


def post_url(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    policy: UrlPolicy,
    *,
    resolver: Resolver | None = None,
) -> int:
    """Post a body, and return the status; redirects are not followed.

    Args:
        url: The URL.
        body: The body.
        headers: Header fields.
        policy: Which URLs and addresses are allowed, and how long a request may take.
        resolver: Resolves host names; None for the system's.

    Raises:
        InputError: If the policy does not allow the URL, or an address of its host.
        TimeoutError: If the server does not respond in time.
        OSError: If it cannot be reached.
    """
    target = policy.target(url)
    with fetch_context(policy, resolver), wrap_errors(target):
        response = pool_for(target).urlopen(
            "POST",
            target.path,
            body=body,
            headers=dict(headers),
            retries=NO_RETRY,
            redirect=False,
            pool_timeout=math.ceil(current_fetch().remaining()),
            preload_content=False,
            decode_content=False,
        )
        try:
            with contextlib.suppress(HTTPError, OSError):
                response.read1(_MAX_READ)
        finally:
            response.close()
            response.release_conn()
        return response.status
