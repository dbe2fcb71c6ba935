"""A shard's images, read ahead of the network and decoded, under budgets of bytes and pixels.

Threads read. Whoever takes an image decodes it, so that a core that decodes and predicts does one
thing after the other and keeps its caches. Images come out as they are ready, not in order: a huge
one among thumbnails is decoded by a thread, in its own time, while its neighbours pass.
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
from eagleray.io.fetch import ImageReader, ImageSource
from eagleray.tasks.outcome import Outcome

__all__ = ["Budget", "DecodedItem", "Prefetcher", "decode_sandboxed"]


class Budget:
    """An amount that threads share, first come, first served.

    Args:
        limit: Of what is taken at a time. One that wants more than all waits until it is alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._free = limit
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Wait for a part of the budget and hold it."""
        amount = min(amount, self._limit)
        # Whoever waits keeps the turn, so that many small ones cannot pass a large one for ever.
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
        index: Of its row in the shard.
        image: Decoded, or the reason why it is not.
        milliseconds: Reading and decoding.
    """

    index: int
    image: DecodedImage | Outcome
    milliseconds: float


@dataclass(frozen=True, slots=True)
class _Read:
    """An image that waits to be decoded.

    Attributes:
        index: Of its row in the shard.
        source: Where it is from.
        data: Encoded.
        seconds: That reading took.
        held: Its part of the budget of bytes; closed when it is decoded.
    """

    index: int
    source: ImageSource
    data: bytes
    seconds: float
    held: contextlib.ExitStack


@dataclass(frozen=True)
class Prefetcher:
    """Reads with threads, and decodes large images with them; the others, whoever takes them.

    Attributes:
        reader: Of encoded images.
        contract: To decode by.
        pool: Its threads.
        apart: Images of more pixels, as their headers claim, are decoded by the threads.
        decoders: Held by a thread while it decodes.
        pixels: Held by a thread while it decodes, by what the header claims.
        num_bytes: Held from the read to the end of the decode, by the listed size.
        watch: Is told what is being decoded.
        ahead: Images that are read or wait at a time.
    """

    reader: ImageReader
    contract: ImageContract
    pool: ThreadPoolExecutor
    apart: int
    decoders: threading.Semaphore
    pixels: Budget
    num_bytes: Budget
    watch: Callable[[str], AbstractContextManager[None]]
    ahead: int

    def feed(self, sources: Sequence[ImageSource]) -> Iterator[DecodedItem]:
        """Yield every image, in the order in which they become ready."""
        ready: queue.SimpleQueue[DecodedItem | _Read | BaseException] = queue.SimpleQueue()
        waiting = iter(enumerate(sources))
        num_under_way = 0

        def work(index: int, source: ImageSource) -> None:
            try:
                ready.put(self._read(index, source))
            except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
                ready.put(error)

        def submit_next() -> None:
            nonlocal num_under_way
            for index, source in waiting:
                self.pool.submit(work, index, source)
                num_under_way += 1
                return

        try:
            for _ in range(self.ahead):
                submit_next()
            for _ in sources:
                one = ready.get()
                num_under_way -= 1
                if isinstance(one, BaseException):
                    raise one
                submit_next()
                yield self._decode(one) if isinstance(one, _Read) else one
        finally:  # who leaves early gives back what is held
            for _ in range(num_under_way):
                left = ready.get()
                if isinstance(left, _Read):
                    left.held.close()

    def _read(self, index: int, source: ImageSource) -> DecodedItem | _Read:
        """Read an image; a large one is decoded as well, and one that cannot be is a failure."""
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
            read = _Read(index, source, data, seconds, held.pop_all())
        if num_pixels <= self.apart:
            return read
        with self.decoders, self.pixels.take(num_pixels):
            return self._decode(read)

    def _decode(self, read: _Read) -> DecodedItem:
        began = time.perf_counter()
        image: DecodedImage | Outcome
        with read.held:
            try:
                with self.watch(read.source.uri):
                    image = decode(read.data, self.contract)
            except BadImageError as error:
                image = Outcome.from_error(error)
        return DecodedItem(read.index, image, 1000 * (read.seconds + time.perf_counter() - began))


def decode_sandboxed(
    sources: Sequence[ImageSource], reader: ImageReader, sandbox: DecodeSandbox
) -> Iterator[DecodedItem]:
    """Yield every image, in order, each decoded where its faults hurt nobody."""
    for index, source in enumerate(sources):
        started = time.perf_counter()
        image: DecodedImage | Outcome
        try:
            image = sandbox.decode(reader.read(source))
        except BadImageError as error:
            image = Outcome.from_error(error)
        yield DecodedItem(index, image, 1000 * (time.perf_counter() - started))
