"""The queue and its worker threads, with a fake version and, where time counts, a fake clock."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from eagleray.core.errors import Reason
from eagleray.serving.prediction.workers import TimedOutcome, WorkerOptions, WorkerThreads
from eagleray.serving.problems import DeadlineError, FullError
from eagleray.tasks.outcome import Failure, Outcome, Prediction


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Echo:
    """Predicts each image as its own text; can be blocked, slow on a clock, or made to fail."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock, self.seconds = clock, 0.0
        self.go = threading.Event()
        self.go.set()
        self.began = threading.Event()
        self.batches: list[list[Any]] = []
        self.fault: Exception | None = None
        self.failure: Failure | None = None

    def decode(self, images: Sequence[Any]) -> Sequence[Any]:
        self.began.set()
        self.go.wait(10)
        if self.clock is not None:
            self.clock.now += self.seconds
        self.batches.append(list(images))
        return images

    def predict(self, decoded: Sequence[Any]) -> list[Outcome]:
        if self.fault is not None:
            raise self.fault
        if self.failure is not None:
            return [Outcome(failure=self.failure) for _ in decoded]
        return [
            Outcome(prediction=Prediction(str(item), 1.0, (), None, np.empty(0, np.float32)))
            for item in decoded
        ]


@pytest.fixture
def open_workers() -> Iterator[Callable[..., WorkerThreads]]:
    opened = []

    def make(clock: Callable[[], float] = time.monotonic, **options: Any) -> WorkerThreads:
        opened.append(WorkerThreads(WorkerOptions(**{"num_threads": 1, **options}), clock=clock))
        return opened[-1]

    yield make
    for workers in opened:
        workers.close()


async def predict(
    workers: WorkerThreads,
    version: Echo,
    image: object,
    *,
    pixels: int = 1,
    seconds: float = 5,
    clock: Callable[[], float] = time.monotonic,
) -> TimedOutcome:
    return await workers.predict(version, image, pixels=pixels, deadline=clock() + seconds)


def label(answered: TimedOutcome) -> str | None:
    assert answered.outcome.prediction is not None
    return answered.outcome.prediction.label


async def blocked(workers: WorkerThreads, version: Echo) -> asyncio.Task[TimedOutcome]:
    """Block the only worker."""
    version.go.clear()
    version.began.clear()
    task = asyncio.create_task(predict(workers, version, "first"))
    await asyncio.to_thread(version.began.wait, 5)
    return task


def test_every_image_gets_its_own_outcome(open_workers: Callable[..., WorkerThreads]) -> None:
    async def run() -> list[TimedOutcome]:
        workers, version = open_workers(num_threads=3), Echo()
        return await asyncio.gather(*(predict(workers, version, number) for number in range(100)))

    assert [label(item) for item in asyncio.run(run())] == [str(number) for number in range(100)]


def test_images_that_arrive_while_a_worker_is_busy_are_the_next_batch(
    open_workers: Callable[..., WorkerThreads],
) -> None:
    async def run() -> tuple[Echo, Echo]:
        workers, version, other = (
            open_workers(max_batch_images=4, max_batch_pixels=100),
            Echo(),
            Echo(),
        )
        first = await blocked(workers, version)
        rest = [predict(workers, version, n) for n in range(3)] + [predict(workers, other, "other")]
        rest += [predict(workers, version, "large", pixels=1000)]
        waiting = [asyncio.create_task(item) for item in rest]
        await asyncio.sleep(0)
        version.go.set()
        await asyncio.gather(first, *waiting)
        return version, other

    version, other = asyncio.run(run())
    assert version.batches == [["first"], [0, 1, 2], ["large"]]
    assert other.batches == [["other"]]


def test_a_full_queue_refuses_at_once(open_workers: Callable[..., WorkerThreads]) -> None:
    async def run() -> float:
        workers, version = open_workers(max_queued=2), Echo()
        first = await blocked(workers, version)
        waiting = [asyncio.create_task(predict(workers, version, number)) for number in range(2)]
        await asyncio.sleep(0)
        began = time.monotonic()
        with pytest.raises(FullError) as full:
            await predict(workers, version, "too many")
        took = time.monotonic() - began
        assert full.value.retry_after >= 0.1
        version.go.set()
        await asyncio.gather(first, *waiting)
        return took

    assert asyncio.run(run()) < 0.5


def test_capacity_is_what_can_be_predicted_in_time(
    open_workers: Callable[..., WorkerThreads],
) -> None:
    clock = Clock()
    workers, version = open_workers(clock, max_wait=1.0, max_queued=100, max_batch_images=4), Echo()
    assert workers.capacity == 104  # nothing is known yet
    asyncio.run(predict(workers, version, "a"))
    assert workers.capacity == 104  # an image takes no time at all
    slow = open_workers(clock, max_wait=1.0, max_queued=100, max_batch_images=4)
    version = Echo(clock)
    version.seconds = 0.2
    asyncio.run(predict(slow, version, "a", clock=clock))
    assert slow.capacity == 7  # five that wait up to a second, and the two before and after them


@pytest.mark.parametrize(
    ("workers", "seconds_per_image", "max_wait", "capacity"),
    [
        (2, 0.0625, 1.0, 35),  # 32 images a second: the 35th finds 32 that are to be answered first
        (2, 0.0625, 3.0, 99),
        (1, 0.5, 3.0, 8),
        (2, 2.0, 1.0, 8),  # a batch for each lane is taken on, however long it takes
        (2, 0.0001, 3.0, 264),  # what may wait has a bound of its own
        (2, 0.0, 3.0, 264),  # nothing is known yet
    ],
)
def test_the_last_of_the_capacity_waits_no_longer_than_it_may(
    workers: int, seconds_per_image: float, max_wait: float, capacity: int
) -> None:
    options = WorkerOptions(workers, max_wait=max_wait, max_batch_images=4)
    assert options.capacity(seconds_per_image) == capacity
    if 4 * workers < capacity < 264:
        assert options.expected_wait(capacity - 1, seconds_per_image) <= max_wait
        assert options.expected_wait(capacity, seconds_per_image) > max_wait


def test_closed_loop_callers_are_all_admitted_if_the_last_is_in_time() -> None:
    options = WorkerOptions(2, max_wait=1.0)
    a_second = 31
    assert options.capacity(2 / a_second) >= 24
    assert WorkerOptions(2).capacity(2 / a_second) >= 64


def test_one_slow_image_does_not_decide_the_expected_wait(
    open_workers: Callable[..., WorkerThreads],
) -> None:
    clock = Clock()

    async def run() -> list[int]:
        workers = open_workers(clock, max_wait=10.0, max_queued=1000, max_batch_images=4)
        version = Echo(clock)
        version.failure = Failure(Reason.TIMEOUT, "An image that hangs takes all of its time.")
        version.seconds = 0.2
        await predict(workers, version, "hangs", clock=clock)
        after_hang, version.failure = workers.capacity, None
        capacities = [after_hang]
        for _ in range(5):
            await predict(workers, version, "an image", clock=clock)
            capacities.append(workers.capacity)
            version.seconds = 0.001
        return capacities

    after_hang, after_slow, *after_others = asyncio.run(run())
    assert after_hang == 1004  # the time that a decoder hangs says nothing
    assert after_slow <= 52  # would wait for ten seconds
    assert sorted(after_others) == after_others
    assert after_others[-1] > 3 * after_slow  # five images took hardly longer than one


def test_late_images_are_not_started(open_workers: Callable[..., WorkerThreads]) -> None:
    async def run() -> Echo:
        workers, version = open_workers(), Echo()
        first = await blocked(workers, version)
        with pytest.raises(DeadlineError):
            await predict(workers, version, "late", seconds=0.05)
        version.go.set()
        await first
        await predict(workers, version, "last")
        return version

    assert asyncio.run(run()).batches == [["first"], ["last"]]


def test_an_image_whose_caller_went_away_is_not_started(
    open_workers: Callable[..., WorkerThreads],
) -> None:
    async def run() -> Echo:
        workers, version = open_workers(), Echo()
        first = await blocked(workers, version)
        gone = asyncio.create_task(predict(workers, version, "gone"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        version.go.set()
        await first
        await predict(workers, version, "last")
        return version

    assert asyncio.run(run()).batches == [["first"], ["last"]]


def test_a_failing_batch_fails_alone(open_workers: Callable[..., WorkerThreads]) -> None:
    async def run() -> str | None:
        workers, version = open_workers(), Echo()
        version.fault = RuntimeError("defect")
        with pytest.raises(RuntimeError, match="defect"):
            await predict(workers, version, "bad")
        version.fault = None
        return label(await predict(workers, version, "good"))

    assert asyncio.run(run()) == "good"
