"""Calls in threads, a bounded number of them ahead of whoever reads the results in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["results_ahead"]

_CALLS_AHEAD = 8

T = TypeVar("T")
R = TypeVar("R")


def results_ahead(
    pool: ThreadPoolExecutor, call: Callable[[T], R], items: Iterable[T]
) -> Iterator[R]:
    """Yield what a call gives for each item, in the order of the items.

    Args:
        pool: Runs the calls.
        call: For one item.
        items: Taken as results are read, a few ahead.
    """
    rest = iter(items)
    running: deque[Future[R]] = deque(
        pool.submit(call, item) for item in itertools.islice(rest, _CALLS_AHEAD)
    )
    while running:
        result = running.popleft().result()
        running.extend(pool.submit(call, item) for item in itertools.islice(rest, 1))
        yield result
