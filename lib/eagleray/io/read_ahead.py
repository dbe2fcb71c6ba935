"""Runs calls in threads ahead of the code that reads their results, in order and within bounds."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["join_streams", "read_ahead"]

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    call: Callable[[T], R],
    items: Iterable[T],
    *,
    threads: int | ThreadPoolExecutor = 8,
    max_ahead: int = 8,
    max_bytes: float = float("inf"),
    num_bytes: Callable[[T], int] = lambda _: 0,
) -> Generator[R, None, None]:
    """Yield what a call returns for each item, in the order of the items.

    An error of a call or of the iterable is raised in its place, after the results before it. When
    the generator ends or is closed, calls that have not begun are cancelled.

    Args:
        call: Runs in a thread.
        items: Taken by the reader's thread as results are read.
        threads: Number of threads, which end with the generator; or a pool that the caller closes.
        max_ahead: Calls that may be running, or done and not read yet.
        max_bytes: Bytes of their items. One item is taken however large it is.
        num_bytes: Returns the bytes that an item counts for.
    """
    rest = iter(items)
    running: deque[tuple[Future[R], int]] = deque()
    bytes_ahead = 0
    exhausted = False
    with contextlib.ExitStack() as stack:
        if isinstance(threads, ThreadPoolExecutor):
            pool = threads
        else:
            pool = stack.enter_context(ThreadPoolExecutor(threads, "read-ahead"))

        def fill() -> None:
            nonlocal bytes_ahead, exhausted
            while not exhausted and len(running) < max_ahead:
                if running and bytes_ahead >= max_bytes:
                    return
                try:
                    item = next(rest)
                except StopIteration:
                    exhausted = True
                except Exception as error:  # noqa: BLE001 - raised in its place
                    exhausted = True
                    failed: Future[R] = Future()
                    failed.set_exception(error)
                    running.append((failed, 0))
                else:
                    size = num_bytes(item)
                    running.append((pool.submit(call, item), size))
                    bytes_ahead += size

        try:
            fill()
            while running:
                future, size = running.popleft()
                result = future.result()
                bytes_ahead -= size
                fill()
                yield result
        finally:
            for future, _ in running:
                future.cancel()


def join_streams(
    streams: Iterable[Iterable[T]], *, threads: int = 8, max_ahead: int = 16
) -> Iterator[T]:
    """Yield the values of all streams, in order.

    The streams that follow are begun in the meantime, and each holds one value ready, so memory
    does not grow with their number or their length.

    Args:
        streams: Iterables whose values threads produce.
        threads: Number of threads, which end with the generator.
        max_ahead: Streams that may be begun and not read yet.
    """
    end = object()

    def begin(stream: Iterable[T]) -> tuple[T | object, Iterator[T]]:
        values = iter(stream)
        return next(values, end), values

    with ThreadPoolExecutor(threads, "read-ahead") as pool:
        for first, rest in read_ahead(begin, streams, threads=pool, max_ahead=max_ahead):
            value = first
            while value is not end:
                following = pool.submit(next, rest, end)
                yield value  # type: ignore[misc]
                value = following.result()
