"""A shard's images on their way to the network: all of them, within the budgets, none stuck."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.core.errors import BadImageError, Reason
from eagleray.imaging import DecodedImage
from eagleray.imaging.sandbox import DecodeSandbox
from eagleray.inference.prefetcher import Budget, DecodedItem, Prefetcher, decode_sandboxed
from eagleray.io.fetch import ImageReader, ImageSource
from eagleray.tasks.outcome import Outcome
from tests.support.images import encode, photo
from tests.support.models import CONTRACT

# A deadlock also stops the end of the process, so its watch ends it without asking.
pytestmark = pytest.mark.timeout(120, method="thread")

PATIENCE = 30.0
"""Seconds after which a test is stuck; nothing here takes item."""


# --- budget -----------------------------------------------------------------------------------


class Taker:
    """Takes a part of a budget in a thread of its own, and keeps it until told."""

    def __init__(self, budget: Budget, amount: int) -> None:
        self.amount = amount
        self.has_it, self._may_go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(budget,))
        self._thread.start()

    def _run(self, budget: Budget) -> None:
        with budget.take(self.amount):
            self.has_it.set()
            self._may_go.wait(PATIENCE)

    def let_go(self) -> None:
        self._may_go.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def test_a_budget_is_never_exceeded_and_gives_all_it_has() -> None:
    budget = Budget(10)
    first, second = Taker(budget, 6), Taker(budget, 4)
    assert first.has_it.wait(PATIENCE)
    assert second.has_it.wait(PATIENCE)
    third = Taker(budget, 1)
    assert not third.has_it.wait(0.05)
    first.let_go()
    assert third.has_it.wait(PATIENCE)
    second.let_go()
    third.let_go()


def test_more_than_all_is_all() -> None:
    budget = Budget(10)
    small = Taker(budget, 1)
    assert small.has_it.wait(PATIENCE)
    huge = Taker(budget, 10**12)
    assert not huge.has_it.wait(0.05)
    small.let_go()
    assert huge.has_it.wait(PATIENCE)
    later = Taker(budget, 1)
    assert not later.has_it.wait(0.05)
    huge.let_go()
    assert later.has_it.wait(PATIENCE)
    later.let_go()


def test_nothing_is_taken_for_nothing() -> None:
    budget = Budget(10)
    holder = Taker(budget, 10)
    assert holder.has_it.wait(PATIENCE)
    with budget.take(0):
        pass
    holder.let_go()


def test_small_ones_do_not_pass_a_large_one_for_ever() -> None:
    budget = Budget(10)
    held = Taker(budget, 5)
    assert held.has_it.wait(PATIENCE)
    large = Taker(budget, 10)
    assert not large.has_it.wait(0.05)
    small = [Taker(budget, 1) for _ in range(5)]
    assert not any(taker.has_it.wait(0.01) for taker in small)  # there is room, and not their turn
    held.let_go()
    assert large.has_it.wait(PATIENCE)
    large.let_go()
    for taker in small:
        assert taker.has_it.wait(PATIENCE)
        taker.let_go()


def test_an_error_gives_back_what_was_taken() -> None:
    budget = Budget(10)
    with contextlib.suppress(KeyError), budget.take(10):
        raise KeyError
    taker = Taker(budget, 10)
    assert taker.has_it.wait(PATIENCE)
    taker.let_go()


@settings(max_examples=30)
@given(
    limit=st.integers(1, 20),
    amounts=st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=6),
)
def test_threads_that_share_a_budget_all_get_their_turn(
    limit: int, amounts: list[list[int]]
) -> None:
    budget = Budget(limit)
    lock = threading.Lock()
    held = most = num_done = 0

    def run(wanted: list[int]) -> None:
        nonlocal held, most, num_done
        for amount in wanted:
            with budget.take(amount):
                with lock:
                    held += min(amount, limit)
                    most = max(most, held)
                time.sleep(0)
                with lock:
                    held -= min(amount, limit)
                    num_done += 1

    threads = [threading.Thread(target=run, args=(wanted,)) for wanted in amounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert num_done == sum(map(len, amounts))
    assert most <= limit
    with budget.take(limit):
        pass


# --- prefetcher -----------------------------------------------------------------------------------

THUMBNAIL = encode(photo(40, 30))
HUGE = encode(photo(400, 300))


class FakeReader(ImageReader):
    """Answers each source by its URI: with bytes, an error, or what a function returns."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__(10**9)
        self._answers = answers
        self.num_read: Counter[str] = Counter()

    def read(self, source: ImageSource) -> bytes:
        self.num_read[source.uri] += 1
        answer = self._answers.get(source.uri, THUMBNAIL)
        if isinstance(answer, BaseException):
            raise answer
        data: bytes = answer() if callable(answer) else answer
        return data


@contextlib.contextmanager
def prefetcher(
    *,
    answers: dict[str, Any] | None = None,
    threads: int = 4,
    max_inline_pixels: int = 0,
    decoders: int = 1,
    pixels: int = 10**6,
    num_bytes: int = 10**6,
    ahead: int = 8,
    watch: Callable[[str], AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> Iterator[Prefetcher]:
    with ThreadPoolExecutor(threads) as pool:
        yield Prefetcher(
            reader=FakeReader(answers or {}),
            contract=CONTRACT,
            pool=pool,
            max_inline_pixels=max_inline_pixels,
            decoders=threading.Semaphore(decoders),
            pixels=Budget(pixels),
            num_bytes=Budget(num_bytes),
            watch=watch,
            ahead=ahead,
        )


def sources(count: int, *, size: int | None = 100) -> list[ImageSource]:
    return [ImageSource(f"/images/{number}", size) for number in range(count)]


def leave(items: Iterator[DecodedItem]) -> None:
    assert isinstance(items, Generator)
    items.close()


def indices(items: Iterator[DecodedItem]) -> list[int]:
    return [item.index for item in items]


@pytest.mark.parametrize("max_inline_pixels", [0, 10**9])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_every_image_comes_out_once(count: int, max_inline_pixels: int) -> None:
    with prefetcher(max_inline_pixels=max_inline_pixels) as reading:
        items = list(reading.prefetch(sources(count)))
    assert sorted(item.index for item in items) == list(range(count))
    assert all(isinstance(item.image, DecodedImage) for item in items)
    assert all(item.milliseconds > 0 for item in items)


def test_an_image_belongs_to_the_row_that_named_it() -> None:
    sizes = {f"/images/{number}": encode(photo(20 + number, 30)) for number in range(30)}
    with prefetcher(answers=dict(sizes), decoders=3) as reading:
        for item in reading.prefetch(sources(30)):
            assert isinstance(item.image, DecodedImage)
            assert item.image.width == 20 + item.index


@pytest.mark.parametrize("max_inline_pixels", [0, 10**9])
def test_a_bad_image_is_an_outcome_and_its_neighbours_are_predicted(max_inline_pixels: int) -> None:
    answers = {
        "/images/1": b"not an image",
        "/images/2": BadImageError(Reason.MISSING, "there is no file"),
        "/images/3": THUMBNAIL[:-200],
    }
    with prefetcher(answers=answers, max_inline_pixels=max_inline_pixels) as reading:
        items = {item.index: item.image for item in reading.prefetch(sources(5))}
    reasons = {
        index: image.failure.reason
        for index, image in items.items()
        if isinstance(image, Outcome) and image.failure is not None
    }
    assert reasons == {1: Reason.NOT_AN_IMAGE, 2: Reason.MISSING, 3: Reason.TRUNCATED}
    assert isinstance(items[0], DecodedImage)
    assert isinstance(items[4], DecodedImage)


def test_a_slow_image_delays_no_other() -> None:
    others_are_out = threading.Event()

    def slow() -> bytes:
        assert others_are_out.wait(PATIENCE)
        return THUMBNAIL

    with prefetcher(answers={"/images/0": slow}, ahead=4) as reading:
        found = []
        for item in reading.prefetch(sources(20)):
            found.append(item.index)
            if len(found) == 19:
                others_are_out.set()
    assert found[-1] == 0
    assert sorted(found) == list(range(20))


@pytest.mark.parametrize("fault", [KeyError("lost"), MemoryError(), SystemExit(3)], ids=repr)
def test_what_is_no_fault_of_an_image_is_raised(fault: BaseException) -> None:
    with prefetcher(answers={"/images/5": fault}) as reading:
        with pytest.raises(type(fault)):
            list(reading.prefetch(sources(50)))
        assert sorted(indices(reading.prefetch(sources(5)))) == list(range(5))  # it is still usable


@pytest.mark.parametrize("max_inline_pixels", [0, 10**9])
def test_a_feed_that_is_left_leaves_no_thread_behind_and_gives_back_what_it_held(
    max_inline_pixels: int,
) -> None:
    threads_before = threading.active_count()
    with prefetcher(num_bytes=150, pixels=2000, max_inline_pixels=max_inline_pixels) as reading:
        items = reading.prefetch(sources(100))
        next(items)
        leave(items)
        assert sorted(indices(reading.prefetch(sources(9)))) == list(range(9))
    assert threading.active_count() == threads_before


def test_no_more_is_read_ahead_than_the_limit() -> None:
    with prefetcher(ahead=6) as reading:
        items = reading.prefetch(sources(100))
        taken = [next(items) for _ in range(10)]
        leave(items)
        reading.pool.shutdown(wait=True)
        assert isinstance(reading.reader, FakeReader)
        assert len(taken) == 10
        assert reading.reader.num_read.total() <= 6 + 10
        assert max(reading.reader.num_read.values()) == 1


class Gauge:
    """Counts how many are inside at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()
        self.most = 0
        self.names: list[str] = []
        self.together: list[set[str]] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with self._lock:
            self._inside[name] += 1
            self.names.append(name)
            self.most = max(self.most, self._inside.total())
            self.together.append({one for one, count in self._inside.items() if count})
        try:
            time.sleep(0.001)
            yield
        finally:
            with self._lock:
                self._inside[name] -= 1


@pytest.mark.parametrize(
    ("decoders", "pixels", "most"), [(1, 10**6, 1), (3, 10**6, 3), (4, 2400, 2)]
)
def test_decoding_keeps_to_its_budgets(decoders: int, pixels: int, most: int) -> None:
    gauge = Gauge()
    with prefetcher(threads=8, decoders=decoders, pixels=pixels, ahead=16, watch=gauge) as reading:
        assert sorted(indices(reading.prefetch(sources(60)))) == list(range(60))
    assert gauge.most <= most
    assert sorted(gauge.names) == sorted(source.uri for source in sources(60))


def test_a_huge_image_among_thumbnails_is_decoded_alone() -> None:
    gauge = Gauge()
    answers = {"/images/7": HUGE}
    with prefetcher(answers=answers, threads=8, decoders=4, pixels=5000, watch=gauge) as reading:
        items = {item.index: item.image for item in reading.prefetch(sources(40))}
    huge = items[7]
    assert isinstance(huge, DecodedImage)
    assert huge.width == 400
    assert len(items) == 40
    assert [names for names in gauge.together if "/images/7" in names] == [{"/images/7"}]
    assert gauge.most > 1


def test_the_consumer_decodes_an_image_unless_it_is_large() -> None:
    decoded_by: dict[str, threading.Thread] = {}

    @contextlib.contextmanager
    def watch(uri: str) -> Iterator[None]:
        decoded_by[uri] = threading.current_thread()
        yield

    answers = {"/images/7": HUGE}
    with prefetcher(answers=answers, max_inline_pixels=40 * 30, watch=watch) as reading:
        assert sorted(indices(reading.prefetch(sources(20)))) == list(range(20))
    here = threading.current_thread()
    assert [uri for uri, thread in decoded_by.items() if thread is not here] == ["/images/7"]
    assert len(decoded_by) == 20


def test_small_images_pass_a_large_one_that_is_being_decoded() -> None:
    others_are_out = threading.Event()

    @contextlib.contextmanager
    def watch(uri: str) -> Iterator[None]:
        assert uri != "/images/0" or others_are_out.wait(PATIENCE)
        yield

    with prefetcher(answers={"/images/0": HUGE}, max_inline_pixels=40 * 30, watch=watch) as reading:
        found = []
        for item in reading.prefetch(sources(20)):
            found.append(item.index)
            if len(found) == 19:
                others_are_out.set()
    assert found[-1] == 0
    assert sorted(found) == list(range(20))


def test_bytes_are_held_from_the_read_to_the_end_of_the_decode() -> None:
    gauge = Gauge()

    def read() -> bytes:
        with gauge("read"):
            return THUMBNAIL

    answers = {source.uri: read for source in sources(40)}
    with prefetcher(answers=answers, threads=8, num_bytes=250) as reading:
        assert len(indices(reading.prefetch(sources(40)))) == 40
    assert gauge.most <= 2


@pytest.mark.parametrize("size", [None, 0, 10**9])
def test_sizes_that_are_unknown_or_beyond_the_budget_do_not_stop_it(size: int | None) -> None:
    with prefetcher(num_bytes=1000) as reading:
        assert len(indices(reading.prefetch(sources(20, size=size)))) == 20


@settings(max_examples=15)
@given(
    pictures=st.lists(st.sampled_from(["small", "huge", "bad", "missing"]), max_size=30),
    size=st.none() | st.integers(0, 400),
    max_inline_pixels=st.sampled_from([0, 40 * 30, 10**9]),
    decoders=st.integers(1, 4),
    threads=st.integers(1, 6),
    ahead=st.integers(1, 12),
)
def test_no_mixture_of_images_gets_stuck(
    pictures: list[str],
    size: int | None,
    max_inline_pixels: int,
    decoders: int,
    threads: int,
    ahead: int,
) -> None:
    answers: dict[str, Any] = {
        "small": THUMBNAIL,
        "huge": HUGE,
        "bad": b"not an image",
        "missing": BadImageError(Reason.MISSING, "there is no file"),
    }
    by_uri = {f"/images/{index}": answers[kind] for index, kind in enumerate(pictures)}
    with prefetcher(
        answers=by_uri,
        threads=threads,
        max_inline_pixels=max_inline_pixels,
        decoders=decoders,
        pixels=3000,
        num_bytes=200,
        ahead=ahead,
    ) as reading:
        items = {
            item.index: item.image for item in reading.prefetch(sources(len(pictures), size=size))
        }
    good = [isinstance(items[index], DecodedImage) for index in range(len(pictures))]
    assert good == [kind in ("small", "huge") for kind in pictures]


def test_sandboxed_images_keep_their_order_and_name_the_same_faults() -> None:
    answers = {
        "/images/1": b"not an image",
        "/images/2": BadImageError(Reason.UNREADABLE, "the storage answers: no"),
    }
    with DecodeSandbox(CONTRACT, seconds=30, memory_bytes=2**30) as sandbox:
        items = list(decode_sandboxed(sources(4), FakeReader(answers), sandbox))
    assert [item.index for item in items] == [0, 1, 2, 3]
    first, second, third, fourth = (item.image for item in items)
    assert isinstance(first, DecodedImage)
    assert isinstance(second, Outcome)
    assert second.failure is not None
    assert second.failure.reason == Reason.NOT_AN_IMAGE
    assert isinstance(third, Outcome)
    assert third.failure is not None
    assert third.failure.message == "the storage answers: no"
    assert isinstance(fourth, DecodedImage)
