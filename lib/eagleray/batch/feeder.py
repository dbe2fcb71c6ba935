"""A shard's images, read and decoded ahead of the network, under budgets of bytes and pixels.

Images come out as they are ready, not in order: a huge one among thumbnails is decoded alone, in
its own time, while the network works on its neighbours.
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

from eagleray.errors import BadImageError
from eagleray.fetch import ImageReader, ImageSource
from eagleray.imaging import DecodedImage, ImageContract, decode, judge
from eagleray.imaging.sandbox import DecodeSandbox
from eagleray.outcome import Outcome

__all__ = ["Budget", "Fed", "Feeder", "feed_carefully"]


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
class Fed:
    """One image on its way to the network.

    Attributes:
        index: Of its row in the shard.
        image: Decoded, or the reason why it is not.
        milliseconds: Reading and decoding.
    """

    index: int
    image: DecodedImage | Outcome
    milliseconds: float


@dataclass(frozen=True)
class Feeder:
    """Reads and decodes with threads.

    Attributes:
        reader: Of encoded images.
        contract: To decode by.
        pool: Its threads read; as many of them as `decoders` allows also decode.
        decoders: Held while decoding.
        pixels: Held while decoding, by what the header claims.
        num_bytes: Held from the read to the end of the decode, by the listed size.
        watch: Is told what is being decoded.
        ahead: Images read, decoding or waiting at a time.
    """

    reader: ImageReader
    contract: ImageContract
    pool: ThreadPoolExecutor
    decoders: threading.Semaphore
    pixels: Budget
    num_bytes: Budget
    watch: Callable[[str], AbstractContextManager[None]]
    ahead: int

    def feed(self, sources: Sequence[ImageSource]) -> Iterator[Fed]:
        """Yield every image, in the order in which they become ready."""
        ready: queue.SimpleQueue[Fed | BaseException] = queue.SimpleQueue()
        waiting = iter(enumerate(sources))

        def work(index: int, source: ImageSource) -> None:
            try:
                ready.put(self._prepare(index, source))
            except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
                ready.put(error)

        def submit_next() -> None:
            for index, source in waiting:
                self.pool.submit(work, index, source)
                return

        for _ in range(self.ahead):
            submit_next()
        for _ in sources:
            fed = ready.get()
            if isinstance(fed, BaseException):
                raise fed
            submit_next()
            yield fed

    def _prepare(self, index: int, source: ImageSource) -> Fed:
        started = time.perf_counter()
        image: DecodedImage | Outcome
        try:
            with self.num_bytes.take(source.size or 0):
                data = self.reader.read(source)
                read = time.perf_counter()
                header = judge(data, self.contract)
                with self.decoders, self.pixels.take(header.width * header.height):
                    began = time.perf_counter()
                    with self.watch(source.uri):
                        image = decode(data, self.contract)
        except BadImageError as error:
            image = Outcome.failed(error.reason, error.message)
            return Fed(index, image, 1000 * (time.perf_counter() - started))
        spent = read - started + time.perf_counter() - began
        return Fed(index, image, 1000 * spent)


def feed_carefully(
    sources: Sequence[ImageSource], reader: ImageReader, sandbox: DecodeSandbox
) -> Iterator[Fed]:
    """Yield every image, in order, each decoded where its faults hurt nobody."""
    for index, source in enumerate(sources):
        started = time.perf_counter()
        image: DecodedImage | Outcome
        try:
            image = sandbox.decode(reader.read(source))
        except BadImageError as error:
            image = Outcome.failed(error.reason, error.message)
        yield Fed(index, image, 1000 * (time.perf_counter() - started))
