"""Reads images that a request only names, if the service's policy allows their location."""

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

__all__ = ["ImageUrl", "ImageUrlReader"]

_NUM_THREADS = 16


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """The location of an image that is not in the request: an http(s) URL or a storage URI."""

    uri: str


class ImageUrlReader:
    """Reads images from their locations, in separate threads.

    Args:
        config: Configuration with the allowed hosts and storage locations, and the time limit.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self._paths = storage.PathPolicy(config.allow_storage)
        self._urls = UrlPolicy(
            hosts=config.allow_urls,
            private_networks=config.private_networks,
            total_seconds=config.timeout_s,
        )
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="fetcher")

    async def read(self, url: ImageUrl, *, max_bytes: int, deadline: float) -> bytes:
        """Read an image.

        Args:
            url: Location of the image.
            max_bytes: Maximum size of the image.
            deadline: Deadline on the monotonic clock.

        Raises:
            ForbiddenError: If the service's policy does not allow the location.
            BadImageError: If the image cannot be read.
            DeadlineError: If the image is not read in time.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await loop.run_in_executor(self._threads, self._read, url, max_bytes)
        except TimeoutError:
            raise DeadlineError("The deadline passed before the image was fetched.") from None

    def _read(self, url: ImageUrl, max_bytes: int) -> bytes:
        if url.uri.partition("://")[0].lower() in ("http", "https"):
            if not self._urls.hosts:
                raise ForbiddenError(
                    "This service fetches no URLs; send the image itself, or ask the operator to "
                    "allow its host."
                )
            if not self._urls.allows(url.uri):
                raise ForbiddenError(
                    "This service does not fetch images from that address; send the image itself, "
                    "or ask the operator to allow its host."
                )
        elif not self._paths.allows(url.uri):
            raise ForbiddenError(
                "This service does not read images from that location; send the image itself, or "
                "ask the operator to allow the location."
            )
        return ImageReader(max_bytes, self._urls, self._paths).read(ImageSource(url.uri))

    def close(self) -> None:
        """End; reads that have not started are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
