"""A bounded queue of images, and the worker threads that decode and predict them in batches.

All loaded versions share the worker threads. There are as many as cores (or two beside a GPU), so
the machine has a fixed amount of work at a time, however many models it serves. A worker takes the
image that has waited longest, and with it others for the same version as long as their pixels fit
into a batch. It never waits for a batch to fill: the images that arrive while all workers are busy
form the next batch, so batches are as large as the load requires.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from eagleray.serving.problems import DeadlineError, FullError
from eagleray.tasks.outcome import Outcome

__all__ = ["TimedOutcome", "Version", "WorkerOptions", "WorkerThreads"]

log = logging.getLogger(__name__)

_MAX_RATIO = 2.0  # a batch counts as at most so many times the mean
_SMOOTHING = 0.02  # weight of a new image in the running mean of seconds per image


class Version(Protocol):
    """The interface of a loaded version that a worker needs."""

    def decode(self, images: Sequence[Any]) -> Sequence[Any]:
        """Decode images, each into a prepared image or a failed outcome."""

    def predict(self, decoded: Sequence[Any]) -> list[Outcome]:
        """Predict prepared images, in order."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The capacity of the queue and of its workers.

    Attributes:
        num_threads: Number of worker threads.
        max_queued: Maximum number of images that wait; more are refused.
        max_wait: Maximum seconds that an image is expected to wait; more images are refused.
        max_batch_images: Maximum number of images in one batch.
        max_batch_pixels: Maximum source pixels in one batch, unless a single image has more.
    """

    num_threads: int
    max_queued: int = 256
    max_wait: float = 3.0
    max_batch_images: int = 8
    max_batch_pixels: int = 8_000_000

    def expected_wait(self, ahead: int, seconds_per_image: float) -> float:
        """Return the seconds that an image is expected to wait for a worker.

        Args:
            ahead: Number of images before it, including those that workers process.
            seconds_per_image: Mean seconds that a worker takes for an image.
        """
        return max(0.0, ahead / self.num_threads - 1) * seconds_per_image

    def capacity(self, seconds_per_image: float) -> int:
        """Return how many images may be in progress at once.

        The last of them waits no longer than `max_wait`. One batch for each worker is always
        accepted, even if it takes longer.

        Args:
            seconds_per_image: Mean seconds that a worker takes for an image; 0 if unknown.
        """
        in_batches = self.num_threads * self.max_batch_images
        limit = in_batches + self.max_queued
        if not seconds_per_image:
            return limit
        in_time = self.num_threads * (1 + self.max_wait / seconds_per_image) + 1
        return min(max(in_batches, int(in_time)), limit)


@dataclass(frozen=True, slots=True)
class TimedOutcome:
    """An image's outcome, and the time that each stage took.

    Attributes:
        outcome: The outcome of the image.
        queued: Seconds in the queue.
        decoding: Seconds to decode the whole batch.
        forward: Seconds to predict the whole batch.
        batch_images: Number of images in the batch.
        began: Moment on the monotonic clock when a worker took the image.
    """

    outcome: Outcome
    queued: float
    decoding: float
    forward: float
    batch_images: int
    began: float = 0.0


@dataclass(slots=True)
class _Work:
    version: Version
    image: object
    pixels: int
    deadline: float
    queued_at: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[TimedOutcome]
    wanted: bool = True  # until its caller stops waiting for it


class WorkerThreads:
    """The queue and its worker threads.

    Args:
        options: The capacity of the queue and of its workers.
        on_batch: Called in a worker with the number of images of each batch.
        clock: Returns the time in seconds, of which deadlines are moments.
    """

    def __init__(
        self,
        options: WorkerOptions,
        *,
        on_batch: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options, self._on_batch, self._clock = options, on_batch, clock
        self._queue: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._num_busy = 0
        self._mean_seconds = _RunningMean()
        self._threads = [
            threading.Thread(target=self._run, name=f"worker-{number}", daemon=True)
            for number in range(options.num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_queued(self) -> int:
        """Number of images that wait."""
        return len(self._queue)

    @property
    def num_busy(self) -> int:
        """Number of images that workers process."""
        return self._num_busy

    @property
    def alive(self) -> bool:
        """Whether every worker thread runs."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def is_idle(self) -> bool:
        """Whether no image waits and a worker is free."""
        return not self._queue and self._num_busy < self.options.num_threads

    @property
    def expected_wait(self) -> float:
        """Seconds that an image which arrives now is expected to wait."""
        ahead = len(self._queue) + self._num_busy
        return self.options.expected_wait(ahead, self._mean_seconds.value)

    @property
    def capacity(self) -> int:
        """Number of images that may be in progress at once, queued and processed."""
        return self.options.capacity(self._mean_seconds.value)

    def require_room(self, num_images: int, deadline: float = math.inf) -> None:
        """Refuse images for which the queue has no room, or that would wait too long.

        Args:
            num_images: Number of images that arrive together.
            deadline: Deadline of the images, on the clock.

        Raises:
            FullError: If there is no room; it has the seconds until a retry makes sense.
        """
        wait = self.expected_wait
        max_wait = min(self.options.max_wait, deadline - self._clock())
        waiting = len(self._queue)
        if waiting and (waiting + num_images > self.options.max_queued or wait > max_wait):
            raise FullError(f"{waiting} images are waiting", retry_after=max(wait, 0.1))

    async def predict(
        self, version: Version, image: object, *, pixels: int, deadline: float
    ) -> TimedOutcome:
        """Queue an image and wait for its outcome.

        Args:
            version: The version that predicts.
            image: The image in the form that the version's `decode` takes.
            pixels: Number of pixels to decode, according to the image's header.
            deadline: Moment on the clock after which the image is not started.

        Raises:
            FullError: If the queue has no room.
            DeadlineError: If the deadline passes first.
        """
        self.require_room(1, deadline)
        loop = asyncio.get_running_loop()
        now = self._clock()
        work = _Work(version, image, pixels, deadline, now, loop, loop.create_future())
        with self._changed:
            self._queue.append(work)
            self._changed.notify()
        try:
            async with asyncio.timeout(max(0.0, deadline - now)):
                return await work.future
        except TimeoutError:
            raise DeadlineError("The deadline passed before the image was predicted.") from None
        finally:
            work.wanted = False  # a worker that has not started it skips it

    def close(self) -> None:
        """Finish what is queued, then end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # --- in the worker threads ---

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._process(batch)
            finally:
                with self._changed:
                    self._num_busy -= len(batch)

    def _next_batch(self) -> list[_Work]:
        """Wait for work; an empty list means that there will be none."""
        with self._changed:
            while True:
                batch = self._take()
                if batch or (self._closing and not self._queue):
                    self._num_busy += len(batch)
                    return batch
                self._changed.wait()

    def _take(self) -> list[_Work]:
        """Take the oldest image that is still wanted, and others that fit into its batch."""
        now = self._clock()
        while self._queue and not _is_due(self._queue[0], now):
            self._queue.popleft()
        if not self._queue:
            return []
        first = self._queue.popleft()
        batch, pixels, rest = [first], first.pixels, deque[_Work]()
        max_pixels = self.options.max_batch_pixels
        while self._queue and len(batch) < self._fair_share(len(batch)):
            work = self._queue.popleft()
            if not _is_due(work, now):
                continue
            if work.version is first.version and pixels + work.pixels <= max_pixels:
                batch.append(work)
                pixels += work.pixels
            else:
                rest.append(work)
        self._queue.extendleft(reversed(rest))
        return batch

    def _fair_share(self, taken: int) -> int:
        """Return how many images a worker takes, so that idle workers get some of the others."""
        waiting = len(self._queue) + taken
        return min(self.options.max_batch_images, math.ceil(waiting / self.options.num_threads))

    def _process(self, batch: list[_Work]) -> None:
        version = batch[0].version
        began = self._clock()
        try:
            decoded = version.decode([work.image for work in batch])
            ready = self._clock()
            outcomes = version.predict(decoded)
        except Exception as error:
            log.exception("a batch of %d images failed", len(batch))
            _deliver(batch, error)
            return
        ended = self._clock()
        if not any(_ended_its_decoder(outcome) for outcome in outcomes):
            self._mean_seconds.add(ended - began, len(batch))
        self._on_batch(len(batch))
        results = [
            TimedOutcome(
                outcome, began - work.queued_at, ready - began, ended - ready, len(batch), began
            )
            for work, outcome in zip(batch, outcomes, strict=True)
        ]
        _deliver(batch, results)


class _RunningMean:
    """The mean seconds per image: of all images at first, then mostly of the latest."""

    def __init__(self) -> None:
        self.value = 0.0
        self._num_images = 0

    def add(self, seconds: float, num_images: int) -> None:
        """Add the duration of a batch."""
        mean = self.value or seconds / num_images
        self._num_images += num_images
        # A batch that was held up, for example by another process, says little about the next.
        found = min(seconds / num_images, _MAX_RATIO * mean)
        weight = max(1 - (1 - _SMOOTHING) ** num_images, num_images / self._num_images)
        self.value = mean + weight * (found - mean)


def _ended_its_decoder(outcome: Outcome) -> bool:
    """Whether an image used up its decoding limits, which says nothing about other images."""
    return outcome.failure is not None and outcome.failure.reason.ends_its_decoder


def _is_due(work: _Work, now: float) -> bool:
    return work.wanted and now < work.deadline


def _deliver(batch: list[_Work], results: list[TimedOutcome] | Exception) -> None:
    """Wake the callers of a batch in their event loop; a batch has only one."""

    def set_results() -> None:
        for index, work in enumerate(batch):
            if work.future.done():
                continue
            if isinstance(results, Exception):
                work.future.set_exception(results)
            else:
                work.future.set_result(results[index])

    try:
        batch[0].loop.call_soon_threadsafe(set_results)
    except RuntimeError:
        log.debug("the event loop that waits for a batch is closed")
