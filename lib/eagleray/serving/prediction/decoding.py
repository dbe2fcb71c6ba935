"""Decodes images in a replica: common formats in the worker thread, others in a sandbox process.

    with Decoding("rare", seconds=5, num_threads=1) as decoding:
        images = decoding.decode_all([jpeg, tiff], contract)    # the TIFF in a sandbox

A decoder that crashes ends its process, and with it every request of the replica; one that hangs
only stops with its process. The decoders of JPEG and PNG are the most attacked and best maintained,
and nearly every request uses them. Images of other formats are rare, so they are decoded in a
process that may die, at the cost of a millisecond.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Self

from eagleray.core.errors import BadImageError
from eagleray.core.types import Isolation
from eagleray.imaging import DecodedImage, ImageContract, decode, detect_format
from eagleray.imaging.sandbox import DecodeSandbox
from eagleray.tasks.outcome import Outcome

__all__ = ["Decoding"]

_COMMON = frozenset({"jpeg", "png"})
_MEMORY_BYTES = 2**31  # for one image and its conversions


class Decoding:
    """The decoder that all versions of a replica share.

    Args:
        isolation: Which images are decoded in a sandbox process.
        seconds: Time limit of a sandboxed image; then its process is killed.
        num_threads: Number of decoding threads; 1 decodes in the calling thread.
        max_idle: Maximum number of idle sandbox processes.
    """

    def __init__(
        self, isolation: Isolation, *, seconds: float, num_threads: int = 1, max_idle: int = 1
    ) -> None:
        self._isolation: Isolation = isolation
        self._sandboxes = _Sandboxes(seconds, max_idle)
        self._pool: ThreadPoolExecutor | None = None
        if num_threads > 1:
            self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decoder")

    def decode_all(
        self, images: Sequence[bytes | DecodedImage], contract: ImageContract
    ) -> list[DecodedImage | Outcome]:
        """Decode images under a contract, unless they are decoded already.

        An image that cannot be decoded is a failed outcome.

        Raises:
            JobFailedError: If no sandbox process can be started.
        """
        prepare = partial(self._prepare, contract)
        return list((map if self._pool is None else self._pool.map)(prepare, images))

    def decode_one(self, image: bytes | DecodedImage, contract: ImageContract) -> DecodedImage:
        """Decode one image under a contract, unless it is decoded already.

        Raises:
            BadImageError: If it cannot be decoded.
            JobFailedError: If no sandbox process can be started.
        """
        decoded = self._prepare(contract, image)
        if isinstance(decoded, DecodedImage):
            return decoded
        assert decoded.failure is not None
        raise BadImageError(decoded.failure.reason, decoded.failure.message)

    def _prepare(
        self, contract: ImageContract, image: bytes | DecodedImage
    ) -> DecodedImage | Outcome:
        if isinstance(image, DecodedImage):
            return image
        try:
            if not self._is_isolated(image):
                return decode(image, contract)
            with self._sandboxes.borrow(contract) as sandbox:
                return sandbox.decode(image)
        except BadImageError as error:
            return Outcome.from_error(error)

    def _is_isolated(self, image: bytes) -> bool:
        if self._isolation == "rare":
            return detect_format(image) not in _COMMON
        return self._isolation == "all"

    def close(self) -> None:
        """End all threads and processes; no image may be in progress."""
        if self._pool is not None:
            self._pool.shutdown()
        self._sandboxes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Sandboxes:
    """Sandboxes by contract, each used by one thread at a time."""

    def __init__(self, seconds: float, max_idle: int) -> None:
        self._seconds, self._max_idle = seconds, max_idle
        self._idle: list[DecodeSandbox] = []  # longest idle first
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, contract: ImageContract) -> Iterator[DecodeSandbox]:
        sandbox = self._find(contract) or DecodeSandbox(
            contract, seconds=self._seconds, memory_bytes=_MEMORY_BYTES
        )
        try:
            yield sandbox
        finally:
            self._give_back(sandbox)

    def _find(self, contract: ImageContract) -> DecodeSandbox | None:
        with self._lock:
            for sandbox in reversed(self._idle):
                if sandbox.contract == contract:
                    self._idle.remove(sandbox)
                    return sandbox
        return None

    def _give_back(self, sandbox: DecodeSandbox) -> None:
        with self._lock:
            self._idle.append(sandbox)
            surplus = self._idle.pop(0) if len(self._idle) > self._max_idle else None
        if surplus is not None:
            surplus.close()

    def close(self) -> None:
        with self._lock:
            for sandbox in self._idle:
                sandbox.close()
            self._idle.clear()
