"""Decoding in a replica: in the lane what common decoders read, the rest where a crash hurts none.

    with Decoding("rare", seconds=5, num_threads=1) as decoding:
        images = decoding.decode_all([jpeg, tiff], contract)    # the TIFF in a process of its own

A decoder that crashes takes its process along, and with it every request of the replica; nothing
but its process's end stops one that hangs. The decoders of JPEG and PNG are the most attacked and
the best mended there are, and nearly every request uses them. The others are seldom wanted, and
wait a millisecond for a process that may die.
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
_MEMORY_BYTES = 2**31  # for one image, with what its conversions take


class Decoding:
    """What all versions of a replica decode with.

    Args:
        isolation: Which images are decoded in a process of their own.
        seconds: For such an image; then its process is ended.
        num_threads: That decode side by side; 1 leaves it to the lane that asks.
        most_idle: Processes that wait for their next image.
    """

    def __init__(
        self, isolation: Isolation, *, seconds: float, num_threads: int = 1, most_idle: int = 1
    ) -> None:
        self._isolation: Isolation = isolation
        self._sandboxes = _Sandboxes(seconds, most_idle)
        self._pool: ThreadPoolExecutor | None = None
        if num_threads > 1:
            self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decoder")

    def decode_all(
        self, images: Sequence[bytes | DecodedImage], contract: ImageContract
    ) -> list[DecodedImage | Outcome]:
        """Prepare images by a contract, those that are not yet; a bad one is a failed outcome.

        Raises:
            JobFailedError: No process can be started.
        """
        prepare = partial(self._prepare, contract)
        return list((map if self._pool is None else self._pool.map)(prepare, images))

    def _prepare(
        self, contract: ImageContract, image: bytes | DecodedImage
    ) -> DecodedImage | Outcome:
        if isinstance(image, DecodedImage):
            return image
        try:
            if not self._is_isolated(image):
                return decode(image, contract)
            with self._sandboxes.lend(contract) as sandbox:
                return sandbox.decode(image)
        except BadImageError as error:
            return Outcome.from_error(error)

    def _is_isolated(self, image: bytes) -> bool:
        if self._isolation == "rare":
            return detect_format(image) not in _COMMON
        return self._isolation == "all"

    def close(self) -> None:
        """End all threads and processes; nothing may be under way."""
        if self._pool is not None:
            self._pool.shutdown()
        self._sandboxes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Sandboxes:
    """Sandboxes of any contracts, each lent to one thread at a time."""

    def __init__(self, seconds: float, most_idle: int) -> None:
        self._seconds, self._most_idle = seconds, most_idle
        self._idle: list[DecodeSandbox] = []  # the longest idle first
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, contract: ImageContract) -> Iterator[DecodeSandbox]:
        sandbox = self._find(contract) or DecodeSandbox(
            contract, seconds=self._seconds, memory_bytes=_MEMORY_BYTES
        )
        try:
            yield sandbox
        finally:
            self._take_back(sandbox)

    def _find(self, contract: ImageContract) -> DecodeSandbox | None:
        with self._lock:
            for sandbox in reversed(self._idle):
                if sandbox.contract == contract:
                    self._idle.remove(sandbox)
                    return sandbox
        return None

    def _take_back(self, sandbox: DecodeSandbox) -> None:
        with self._lock:
            self._idle.append(sandbox)
            too_many = self._idle.pop(0) if len(self._idle) > self._most_idle else None
        if too_many is not None:
            too_many.close()

    def close(self) -> None:
        with self._lock:
            for sandbox in self._idle:
                sandbox.close()
            self._idle.clear()
