"""Images that a request only names: read under the service's policy, or refused."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from eagleray.io import storage
from eagleray.io.fetch import ImageReader, ImageSource
from eagleray.io.http import UrlPolicy
from eagleray.serving.config import ServiceConfig
from eagleray.serving.problems import DeadlineError, ForbiddenError

__all__ = ["ImageLink", "LinkReader"]

_FETCHERS = 16


@dataclass(frozen=True, slots=True)
class ImageLink:
    """An image that is not in the request: an http(s) URL, or a storage location."""

    uri: str


class LinkReader:
    """Reads images in threads of its own.

    Args:
        config: Which hosts and locations are allowed, and for how long one is waited for.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self._paths = storage.PathPolicy(config.allow_storage)
        self._urls = UrlPolicy(
            hosts=config.allow_urls,
            private_networks=config.private_networks,
            total_seconds=config.timeout_s,
        )
        self._threads = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetcher")

    async def read(self, link: ImageLink, *, max_bytes: int, deadline: float) -> bytes:
        """Read an image.

        Args:
            link: Where it is.
            max_bytes: That it may have.
            deadline: On the monotonic clock.

        Raises:
            ForbiddenError: It is at no place that the service reads from.
            BadImageError: It cannot be read.
            DeadlineError: Not in time.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await loop.run_in_executor(self._threads, self._read, link, max_bytes)
        except TimeoutError:
            raise DeadlineError("The deadline passed before the image was fetched.") from None

    def _read(self, link: ImageLink, max_bytes: int) -> bytes:
        if link.uri.partition("://")[0].lower() in ("http", "https"):
            if not self._urls.hosts:
                raise ForbiddenError("This service fetches no URLs; send the image itself.")
            if not self._urls.allows(link.uri):
                raise ForbiddenError(
                    "This service does not fetch images from that address; send the image itself."
                )
        elif not self._paths.allows(link.uri):
            raise ForbiddenError(
                "This service does not read images from there; send the image itself."
            )
        return ImageReader(max_bytes, self._urls, self._paths).read(ImageSource(link.uri))

    def close(self) -> None:
        """End; what is not begun is left."""
        self._threads.shutdown(wait=False, cancel_futures=True)
