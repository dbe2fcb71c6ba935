"""A bounded queue of images, and the threads that decode and predict what it holds.

All loaded versions share the lanes, of which there are as many as cores (or two beside a GPU), so
that the machine has one amount of work at a time, however many models it serves. A lane takes the
image that has waited longest, and with it others for the same version as long as their pixels fit
into a batch. It never waits for a batch to fill: what gathers while the lanes are busy is the
batch, so that batches are as large as the load asks for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from eagleray.serving.problems import DeadlineError, FullError
from eagleray.tasks.outcome import Outcome

__all__ = ["Answered", "LaneOptions", "Lanes", "Version"]

log = logging.getLogger(__name__)

_MAX_TIMES = 2.0  # the mean, that a batch counts as
_SMOOTHING = 0.02  # weight of a new image in the running mean of seconds for an image


class Version(Protocol):
    """What a lane needs of a loaded version."""

    def decode(self, images: Sequence[Any]) -> Sequence[Any]:
        """Prepare images, each into a decoded one or a failed outcome."""

    def predict(self, decoded: Sequence[Any]) -> list[Outcome]:
        """Answer prepared images, in order."""


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """How much is taken on.

    Attributes:
        num_lanes: Threads.
        max_queued: Images that wait; more are refused.
        max_wait: Seconds that an image may be expected to wait for a lane; more are refused.
        batch_images: In one batch.
        batch_pixels: Source pixels in one batch, unless a single image has more.
    """

    num_lanes: int
    max_queued: int = 256
    max_wait: float = 3.0
    batch_images: int = 8
    batch_pixels: int = 8_000_000

    def wait_behind(self, ahead: int, seconds_per_image: float) -> float:
        """Return the seconds that an image is expected to wait for a lane.

        Args:
            ahead: Images before it, those that lanes work on among them.
            seconds_per_image: That a lane takes.
        """
        return max(0.0, ahead / self.num_lanes - 1) * seconds_per_image

    def room(self, seconds_per_image: float) -> int:
        """Return how many images may be under way at once.

        The last of them waits no longer than `max_wait`; where a batch for each lane takes longer
        than that, it is taken on all the same.

        Args:
            seconds_per_image: That a lane takes; 0 where it is not known.
        """
        in_lanes = self.num_lanes * self.batch_images
        limit = in_lanes + self.max_queued
        if not seconds_per_image:
            return limit
        in_time = self.num_lanes * (1 + self.max_wait / seconds_per_image) + 1
        return min(max(in_lanes, int(in_time)), limit)


@dataclass(frozen=True, slots=True)
class Answered:
    """An image's outcome, and where its time went.

    Attributes:
        outcome: The answer.
        queued: Seconds in the queue.
        decoding: Seconds for the whole batch.
        forward: Seconds for the whole batch.
        batch_images: How many shared the batch.
        began: When a lane took it, on the monotonic clock.
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
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Answered]
    queued: float = field(default_factory=time.monotonic)
    wanted: bool = True  # until whoever waits for it goes away


class Lanes:
    """The queue and its threads.

    Args:
        options: How much is taken on.
        observe: Is called in a lane with the number of images of each batch.
    """

    def __init__(
        self, options: LaneOptions, *, observe: Callable[[int], None] = lambda _: None
    ) -> None:
        self.options, self._observe = options, observe
        self._queue: deque[_Work] = deque()
        self._there_is_work = threading.Condition()
        self._closing = False
        self._busy = 0  # images in lanes
        self._seconds_per_image = 0.0  # of one lane; a running mean
        self._num_timed = 0  # images in it
        self._threads = [
            threading.Thread(target=self._run, name=f"lane-{number}", daemon=True)
            for number in range(options.num_lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_queued(self) -> int:
        """Images that wait."""
        return len(self._queue)

    @property
    def num_busy(self) -> int:
        """Images that lanes work on."""
        return self._busy

    @property
    def alive(self) -> bool:
        """Whether every lane is at work."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def expected_wait(self) -> float:
        """Seconds that an image which comes now is expected to wait for its lane."""
        ahead = len(self._queue) + self._busy
        return self.options.wait_behind(ahead, self._seconds_per_image)

    @property
    def room(self) -> int:
        """Images that are best taken on at once: what lanes work on, and what may wait."""
        return self.options.room(self._seconds_per_image)

    def require_room(self, num_images: int, deadline: float = math.inf) -> None:
        """Refuse images that the queue has no room for, or that would wait too long.

        Args:
            num_images: That come together.
            deadline: On the monotonic clock.

        Raises:
            FullError: With the seconds after which another try makes sense.
        """
        wait = self.expected_wait
        most = min(self.options.max_wait, deadline - time.monotonic())
        waiting = len(self._queue)
        if waiting and (waiting + num_images > self.options.max_queued or wait > most):
            raise FullError(f"{waiting} images are waiting", retry_after=max(wait, 0.1))

    async def answer(
        self, version: Version, image: object, *, pixels: int, deadline: float
    ) -> Answered:
        """Queue an image and wait for its answer.

        Args:
            version: That answers.
            image: As the version's `decode` takes it.
            pixels: That decoding it takes, as its header says.
            deadline: On the monotonic clock; after it nothing is begun.

        Raises:
            FullError: The queue has no room.
            DeadlineError: Nobody came to it in time.
        """
        self.require_room(1, deadline)
        loop = asyncio.get_running_loop()
        work = _Work(version, image, pixels, deadline, loop, loop.create_future())
        with self._there_is_work:
            self._queue.append(work)
            self._there_is_work.notify()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await work.future
        except TimeoutError:
            raise DeadlineError("The deadline passed before the image was answered.") from None
        finally:
            work.wanted = False  # a lane that has not begun it passes over it

    def close(self) -> None:
        """Answer what waits, then end the threads."""
        with self._there_is_work:
            self._closing = True
            self._there_is_work.notify_all()
        for thread in self._threads:
            thread.join()

    # --- in the lanes ---

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._answer(batch)
            finally:
                with self._there_is_work:
                    self._busy -= len(batch)

    def _next_batch(self) -> list[_Work]:
        """Wait for work; an empty list means that there will be none."""
        with self._there_is_work:
            while True:
                batch = self._take()
                if batch or (self._closing and not self._queue):
                    self._busy += len(batch)
                    return batch
                self._there_is_work.wait()

    def _take(self) -> list[_Work]:
        """Take the oldest image that is still wanted, and others that go with it."""
        now = time.monotonic()
        while self._queue and not _worth_it(self._queue[0], now):
            self._queue.popleft()
        if not self._queue:
            return []
        first = self._queue.popleft()
        batch, pixels, rest = [first], first.pixels, deque[_Work]()
        while self._queue and len(batch) < self._fair_share(len(batch)):
            work = self._queue.popleft()
            if not _worth_it(work, now):
                continue
            if work.version is first.version and pixels + work.pixels <= self.options.batch_pixels:
                batch.append(work)
                pixels += work.pixels
            else:
                rest.append(work)
        self._queue.extendleft(reversed(rest))
        return batch

    def _fair_share(self, taken: int) -> int:
        """Return how many images a lane takes, so that idle lanes get some of what waits."""
        waiting = len(self._queue) + taken
        return min(self.options.batch_images, math.ceil(waiting / self.options.num_lanes))

    def _answer(self, batch: list[_Work]) -> None:
        version = batch[0].version
        began = time.monotonic()
        try:
            decoded = version.decode([work.image for work in batch])
            ready = time.monotonic()
            outcomes = version.predict(decoded)
        except Exception as error:
            log.exception("a batch of %d images failed", len(batch))
            _hand_over(batch, error)
            return
        ended = time.monotonic()
        if not any(_ended_its_decoder(outcome) for outcome in outcomes):
            self._note_time(ended - began, len(batch))
        self._observe(len(batch))
        answers = [
            Answered(outcome, began - work.queued, ready - began, ended - ready, len(batch), began)
            for work, outcome in zip(batch, outcomes, strict=True)
        ]
        _hand_over(batch, answers)

    def _note_time(self, seconds: float, num_images: int) -> None:
        """Take what a batch took into the mean: of all images at first, then of the last ones."""
        mean = self._seconds_per_image or seconds / num_images
        self._num_timed += num_images
        # A batch that was held up, by a neighbour on the machine or so, says little of the next.
        found = min(seconds / num_images, _MAX_TIMES * mean)
        weight = max(1 - (1 - _SMOOTHING) ** num_images, num_images / self._num_timed)
        self._seconds_per_image = mean + weight * (found - mean)


def _ended_its_decoder(outcome: Outcome) -> bool:
    """Whether an image took as long as its limits allow, which says nothing of the others."""
    return outcome.failure is not None and outcome.failure.reason.ends_decoder


def _worth_it(work: _Work, now: float) -> bool:
    return work.wanted and now < work.deadline


def _hand_over(batch: list[_Work], answers: list[Answered] | Exception) -> None:
    """Wake those who wait, in their own event loop; a batch has one."""

    def settle() -> None:
        for index, work in enumerate(batch):
            if work.future.done():
                continue
            if isinstance(answers, Exception):
                work.future.set_exception(answers)
            else:
                work.future.set_result(answers[index])

    try:
        batch[0].loop.call_soon_threadsafe(settle)
    except RuntimeError:
        log.debug("nobody waits for a batch any more: its event loop is closed")
