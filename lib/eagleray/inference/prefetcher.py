"""Reads a shard's images ahead of the network and decodes them, within bytes and pixels budgets.

Threads read. The caller decodes an image when it takes it, so that a core that decodes and predicts
does one thing after the other and keeps its caches. Images come out as they are ready, not in
order: a huge one among thumbnails is decoded by a thread while its neighbours pass.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

from eagleray.core.errors import BadImageError
from eagleray.imaging import DecodedImage, ImageContract, check_header, decode
from eagleray.imaging.sandbox import DecodeSandbox
from eagleray.imaging.tiles import TiledImage, Tiling, decode_tiles, tiled
from eagleray.io.fetch import ImageReader, ImageSource
from eagleray.tasks.outcome import Outcome

__all__ = ["Budget", "DecodedItem", "Prefetcher", "decode_sandboxed"]


class Budget:
    """An amount that threads share, first come, first served.

    Args:
        limit: Maximum amount taken at a time. A request for more waits until it is alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._free = limit
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Wait for an amount of the budget and hold it."""
        amount = min(amount, self._limit)
        # A waiting thread keeps its turn, so that small amounts never overtake a large one.
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify()


@dataclass(frozen=True, slots=True)
class DecodedItem:
    """One image on its way to the network.

    Attributes:
        index: Index of its row in the shard.
        image: The decoded image, or a failure.
        milliseconds: Time that reading and decoding took.
    """

    index: int
    image: DecodedImage | TiledImage | Outcome
    milliseconds: float


@dataclass(frozen=True, slots=True)
class _Read:
    """An image that waits to be decoded.

    Attributes:
        index: Index of its row in the shard.
        source: Place of the image.
        data: Encoded image.
        num_pixels: Number of its pixels, as the header claims.
        seconds: Time that reading took.
        held: Its share of the budget of bytes; closed once it is decoded.
    """

    index: int
    source: ImageSource
    data: bytes
    num_pixels: int
    seconds: float
    held: contextlib.ExitStack


@dataclass(frozen=True)
class Prefetcher:
    """Reads with threads, which also decode large images; the caller decodes the others.

    Attributes:
        reader: Reader of encoded images.
        contract: Contract to decode by.
        pool: The threads.
        max_inline_pixels: Maximum number of pixels, as the header claims, of an image that the
            caller decodes.
        decoders: Semaphore held by a thread while it decodes.
        pixels: Budget held by a thread while it decodes, by what the header claims.
        num_bytes: Budget held from the read to the end of the decode, by the listed size.
        watch: Returns a context around the decode of an image, given its URI.
        ahead: Maximum number of images that are being read or wait to be taken.
        tiling: How large images are divided into tiles; None for no tiles. The caller decodes every
            image then, and holds its share of the budget of pixels until it takes the next.
    """

    reader: ImageReader
    contract: ImageContract
    pool: ThreadPoolExecutor
    max_inline_pixels: int
    decoders: threading.Semaphore
    pixels: Budget
    num_bytes: Budget
    watch: Callable[[str], AbstractContextManager[None]]
    ahead: int
    tiling: Tiling | None = None

    def prefetch(self, sources: Sequence[ImageSource]) -> Iterator[DecodedItem]:
        """Yield every image, in the order in which they become ready."""
        ready: queue.SimpleQueue[DecodedItem | _Read | BaseException] = queue.SimpleQueue()
        waiting = iter(enumerate(sources))
        num_in_flight = 0

        def work(index: int, source: ImageSource) -> None:
            try:
                ready.put(self._read(index, source))
            except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
                ready.put(error)

        def submit_next() -> None:
            nonlocal num_in_flight
            for index, source in waiting:
                self.pool.submit(work, index, source)
                num_in_flight += 1
                return

        try:
            for _ in range(self.ahead):
                submit_next()
            for _ in sources:
                item = ready.get()
                num_in_flight -= 1
                if isinstance(item, BaseException):
                    raise item
                submit_next()
                yield from self._taken(item)
        finally:  # a caller that stops early releases what is held
            for _ in range(num_in_flight):
                left = ready.get()
                if isinstance(left, _Read):
                    left.held.close()

    def _taken(self, item: DecodedItem | _Read) -> Iterator[DecodedItem]:
        """Yield an item, decoded if it is not; the pixels of tiles are held until the next one."""
        if isinstance(item, DecodedItem):
            yield item
        elif self.tiling is None:
            yield self._decode(item)
        else:
            with self.pixels.take(item.num_pixels):
                yield self._decode(item)

    def _read(self, index: int, source: ImageSource) -> DecodedItem | _Read:
        """Read an image, and decode it if it is large; one that cannot be read is a failure."""
        started = time.perf_counter()
        with contextlib.ExitStack() as held:
            held.enter_context(self.num_bytes.take(source.size or 0))
            try:
                data = self.reader.read(source)
                seconds = time.perf_counter() - started
                header = check_header(data, self.contract)
            except BadImageError as error:
                image = Outcome.from_error(error)
                return DecodedItem(index, image, 1000 * (time.perf_counter() - started))
            num_pixels = header.width * header.height
            read = _Read(index, source, data, num_pixels, seconds, held.pop_all())
        if num_pixels <= self.max_inline_pixels or self.tiling is not None:
            return read
        with self.decoders, self.pixels.take(num_pixels):
            return self._decode(read)

    def _decode(self, read: _Read) -> DecodedItem:
        began = time.perf_counter()
        image: DecodedImage | TiledImage | Outcome
        with read.held:
            try:
                with self.watch(read.source.uri):
                    if self.tiling is None:
                        image = decode(read.data, self.contract)
                    else:
                        image = decode_tiles(read.data, self.contract, self.tiling)
            except BadImageError as error:
                image = Outcome.from_error(error)
        return DecodedItem(read.index, image, 1000 * (read.seconds + time.perf_counter() - began))


def decode_sandboxed(
    sources: Sequence[ImageSource],
    reader: ImageReader,
    sandbox: DecodeSandbox,
    tiling: Tiling | None = None,
) -> Iterator[DecodedItem]:
    """Yield every image, in order, each decoded in a child process.

    Args:
        sources: Places of the images.
        reader: Reader of encoded images.
        sandbox: Decodes them, at their own size if they are divided.
        tiling: How large images are divided into tiles; None for no tiles.
    """
    for index, source in enumerate(sources):
        # Not kept in a variable: its pixels would be there while the next one is decoded.
        yield _decode_sandboxed(index, source, reader, sandbox, tiling)


def _decode_sandboxed(
    index: int,
    source: ImageSource,
    reader: ImageReader,
    sandbox: DecodeSandbox,
    tiling: Tiling | None,
) -> DecodedItem:
    started = time.perf_counter()
    image: DecodedImage | TiledImage | Outcome
    try:
        image = sandbox.decode(reader.read(source))
        if tiling is not None:
            image = tiled(image, sandbox.contract, tiling)
    except BadImageError as error:
        image = Outcome.from_error(error)
    return DecodedItem(index, image, 1000 * (time.perf_counter() - started))
