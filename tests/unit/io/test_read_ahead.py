"""Calls in threads, ahead of the code that reads their results."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from eagleray.io.read_ahead import join_streams, read_ahead


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "read-ahead" in thread.name}


def test_results_come_in_the_order_of_the_items() -> None:
    slow = threading.Event()

    def call(number: int) -> int:
        if number == 0:
            assert slow.wait(10)
        if number == 3:
            slow.set()
        return number * 2

    assert list(read_ahead(call, range(50), threads=4)) == [2 * number for number in range(50)]
    assert not names_of_threads()


def test_items_are_taken_a_bounded_number_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = read_ahead(lambda number: number, items(), threads=2, max_ahead=5)
    for number in range(20):
        assert next(results) == number
        assert len(taken) == number + 6  # the one that was read, and five ahead of it
    results.close()
    assert not names_of_threads()


def test_items_are_taken_a_bounded_number_of_bytes_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for size in (10, 60, 50, 200, 1, 1):
            taken.append(size)
            yield size

    results = read_ahead(
        lambda size: size, items(), threads=2, max_ahead=100, max_bytes=100, num_bytes=int
    )
    assert next(results) == 10
    assert taken == [10, 60, 50]
    assert list(results) == [60, 50, 200, 1, 1]


def test_an_error_of_a_call_is_raised_in_its_place() -> None:
    def call(number: int) -> int:
        if number == 3:
            raise OSError("three")
        return number

    results = read_ahead(call, range(10), threads=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="three"):
        next(results)
    assert not names_of_threads()


def test_an_error_of_the_items_is_raised_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("no more")

    results = read_ahead(lambda number: number, items())
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="no more"):
        next(results)


def test_a_pool_of_the_callers_stays_open() -> None:
    with ThreadPoolExecutor(2) as pool:
        assert list(read_ahead(str, range(3), threads=pool)) == ["0", "1", "2"]
        results = read_ahead(str, range(30), threads=pool)
        next(results)
        results.close()
        assert pool.submit(str, 1).result() == "1"


def test_streams_are_joined_in_order_and_begun_ahead() -> None:
    begun: list[int] = []

    def stream(number: int) -> Iterator[tuple[int, int]]:
        begun.append(number)
        for place in range(number % 4):
            yield number, place

    joined = join_streams((stream(number) for number in range(200)), max_ahead=16)
    assert next(joined) == (1, 0)
    assert max(begun) <= 18
    rest = [(number, place) for number in range(200) for place in range(number % 4)]
    assert list(joined) == rest[1:]
    assert not names_of_threads()


def test_an_error_of_a_stream_is_raised_in_its_place() -> None:
    def stream(number: int) -> Iterator[int]:
        yield number
        if number == 2:
            raise OSError("two")

    joined = join_streams(map(stream, range(5)))
    assert [next(joined) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="two"):
        next(joined)
