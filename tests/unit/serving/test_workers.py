"""The queue and its lanes, with a version that does as it is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from eagleray.core.errors import Reason
from eagleray.serving.problems import DeadlineError, FullError
from eagleray.serving.workers import Answered, LaneOptions, Lanes
from eagleray.tasks.outcome import Failure, Outcome, Prediction


class Echo:
    """Answers each image with its own text; can be held up, or made to fail."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.began = threading.Event()
        self.batches: list[list[Any]] = []
        self.fault: Exception | None = None
        self.failure: Failure | None = None

    def decode(self, images: Sequence[Any]) -> Sequence[Any]:
        self.began.set()
        self.go.wait(10)
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
def open_lanes() -> Iterator[Callable[..., Lanes]]:
    opened = []

    def make(**options: Any) -> Lanes:
        opened.append(Lanes(LaneOptions(**{"num_lanes": 1, **options})))
        return opened[-1]

    yield make
    for lanes in opened:
        lanes.close()


async def ask(
    lanes: Lanes, version: Echo, image: object, *, pixels: int = 1, seconds: float = 5
) -> Answered:
    deadline = time.monotonic() + seconds
    return await lanes.answer(version, image, pixels=pixels, deadline=deadline)


def label(answered: Answered) -> str | None:
    assert answered.outcome.prediction is not None
    return answered.outcome.prediction.label


async def held_up(lanes: Lanes, version: Echo) -> asyncio.Task[Answered]:
    """Give the only lane something to wait for."""
    version.go.clear()
    version.began.clear()
    task = asyncio.create_task(ask(lanes, version, "first"))
    await asyncio.to_thread(version.began.wait, 5)
    return task


def test_every_image_gets_its_own_answer(open_lanes: Callable[..., Lanes]) -> None:
    async def run() -> list[Answered]:
        lanes, version = open_lanes(num_lanes=3), Echo()
        return await asyncio.gather(*(ask(lanes, version, number) for number in range(100)))

    assert [label(item) for item in asyncio.run(run())] == [str(number) for number in range(100)]


def test_what_gathers_while_a_lane_is_busy_is_the_next_batch(
    open_lanes: Callable[..., Lanes],
) -> None:
    async def run() -> tuple[Echo, Echo]:
        lanes, version, other = open_lanes(batch_images=4, batch_pixels=100), Echo(), Echo()
        first = await held_up(lanes, version)
        rest = [ask(lanes, version, n) for n in range(3)] + [ask(lanes, other, "other")]
        rest += [ask(lanes, version, "large", pixels=1000)]
        waiting = [asyncio.create_task(item) for item in rest]
        await asyncio.sleep(0)
        version.go.set()
        await asyncio.gather(first, *waiting)
        return version, other

    version, other = asyncio.run(run())
    assert version.batches == [["first"], [0, 1, 2], ["large"]]
    assert other.batches == [["other"]]


def test_a_full_queue_refuses_at_once(open_lanes: Callable[..., Lanes]) -> None:
    async def run() -> float:
        lanes, version = open_lanes(max_queued=2), Echo()
        first = await held_up(lanes, version)
        waiting = [asyncio.create_task(ask(lanes, version, number)) for number in range(2)]
        await asyncio.sleep(0)
        began = time.monotonic()
        with pytest.raises(FullError) as full:
            await ask(lanes, version, "too many")
        took = time.monotonic() - began
        assert full.value.retry_after >= 0.1
        version.go.set()
        await asyncio.gather(first, *waiting)
        return took

    assert asyncio.run(run()) < 0.5


def test_there_is_room_for_what_will_be_answered_in_time(open_lanes: Callable[..., Lanes]) -> None:
    lanes, version = open_lanes(max_wait=1.0, max_queued=100, batch_images=4), Echo()
    assert lanes.room == 104  # nothing is known yet
    asyncio.run(ask(lanes, version, "a"))
    assert lanes.room == 104  # an image takes no time at all
    version.go.clear()
    threading.Timer(0.2, version.go.set).start()
    slow = open_lanes(max_wait=1.0, max_queued=100, batch_images=4)
    asyncio.run(ask(slow, version, "a"))
    assert 4 <= slow.room < 104  # what an image took is known now; a batch is always taken on


@pytest.mark.parametrize(
    ("lanes", "seconds_per_image", "max_wait", "room"),
    [
        (2, 0.0625, 1.0, 35),  # 32 images a second: the 35th finds 32 that are to be answered first
        (2, 0.0625, 3.0, 99),
        (1, 0.5, 3.0, 8),
        (2, 2.0, 1.0, 8),  # a batch for each lane is taken on, however long it takes
        (2, 0.0001, 3.0, 264),  # what may wait has a bound of its own
        (2, 0.0, 3.0, 264),  # nothing is known yet
    ],
)
def test_as_many_are_taken_on_as_wait_no_longer_than_they_may(
    lanes: int, seconds_per_image: float, max_wait: float, room: int
) -> None:
    options = LaneOptions(lanes, max_wait=max_wait, batch_images=4)
    assert options.room(seconds_per_image) == room
    if 4 * lanes < room < 264:
        assert options.wait_behind(room - 1, seconds_per_image) <= max_wait
        assert options.wait_behind(room, seconds_per_image) > max_wait


def test_callers_who_each_wait_are_all_let_in_where_the_last_is_answered_in_time() -> None:
    options = LaneOptions(2, max_wait=1.0)
    a_second = 31
    assert options.room(2 / a_second) >= 24
    assert LaneOptions(2).room(2 / a_second) >= 64


def test_what_is_expected_of_an_image_does_not_come_from_one_slow_image(
    open_lanes: Callable[..., Lanes],
) -> None:
    async def run() -> list[int]:
        lanes, version = open_lanes(max_wait=10.0, max_queued=1000, batch_images=4), Echo()
        version.failure = Failure(Reason.TIMEOUT, "An image that hangs takes all of its time.")
        version.go.clear()
        threading.Timer(0.2, version.go.set).start()
        await ask(lanes, version, "hangs")
        after_hang, version.failure = lanes.room, None
        version.go.clear()
        threading.Timer(0.2, version.go.set).start()
        rooms = [after_hang]
        for _ in range(5):
            await ask(lanes, version, "an image")
            rooms.append(lanes.room)
        return rooms

    after_hang, after_slow, *after_others = asyncio.run(run())
    assert after_hang == 1004  # a lane that waited for a decoder to be ended says nothing
    assert after_slow <= 51  # would wait for ten seconds
    assert sorted(after_others) == after_others
    assert after_others[-1] > 3 * after_slow  # five images took hardly longer than one


def test_late_images_are_not_begun(open_lanes: Callable[..., Lanes]) -> None:
    async def run() -> Echo:
        lanes, version = open_lanes(), Echo()
        first = await held_up(lanes, version)
        with pytest.raises(DeadlineError):
            await ask(lanes, version, "late", seconds=0.05)
        version.go.set()
        await first
        await ask(lanes, version, "last")
        return version

    assert asyncio.run(run()).batches == [["first"], ["last"]]


def test_an_image_whose_caller_went_away_is_not_begun(open_lanes: Callable[..., Lanes]) -> None:
    async def run() -> Echo:
        lanes, version = open_lanes(), Echo()
        first = await held_up(lanes, version)
        gone = asyncio.create_task(ask(lanes, version, "gone"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        version.go.set()
        await first
        await ask(lanes, version, "last")
        return version

    assert asyncio.run(run()).batches == [["first"], ["last"]]


def test_a_failing_batch_fails_alone(open_lanes: Callable[..., Lanes]) -> None:
    async def run() -> str | None:
        lanes, version = open_lanes(), Echo()
        version.fault = RuntimeError("defect")
        with pytest.raises(RuntimeError, match="defect"):
            await ask(lanes, version, "bad")
        version.fault = None
        return label(await ask(lanes, version, "good"))

    assert asyncio.run(run()) == "good"
