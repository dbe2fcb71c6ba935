"""Runs calls that may block on the registry, the database or storage, in separate threads.

A blocked call holds up no other purpose: each has a few threads of its own, the calls that wait for
a thread are counted, and one more than the maximum is refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from eagleray.core.errors import OutageError

__all__ = ["BlockingCalls"]

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_PUBLIC = "A part of the service that this request needs does not answer; try again later."


class BlockingCalls:
    """A bounded pool of threads for calls of one purpose.

    Args:
        name: Name of the purpose.
        num_threads: Number of threads.
        max_waiting: Maximum number of calls that wait for a thread; more are refused.
        seconds: Maximum seconds that a caller waits, for a thread and for the call together.
    """

    def __init__(self, name: str, *, num_threads: int, max_waiting: int, seconds: float) -> None:
        self._name, self._seconds = name, seconds
        self._max_open = num_threads + max_waiting
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._num_open = 0

    @property
    def num_open(self) -> int:
        """Number of calls that run or wait, including those whose callers have given up."""
        with self._lock:
            return self._num_open

    async def run(self, call: Callable[..., ResultT], *args: Any, **options: Any) -> ResultT:
        """Make a call in a thread, and return its result.

        A call whose caller gave up is not started; one that has started continues.

        Raises:
            OutageError: If too many calls wait already, or this one takes too long.
        """
        future = self._submit(lambda: call(*args, **options))
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.done() and not future.cancelled():
                raise  # the call's own
            raise OutageError(
                f"A call for {self._name} has not finished after {self._seconds:g} s.",
                public=_PUBLIC,
            ) from None

    def _submit(self, call: Callable[[], ResultT]) -> Future[ResultT]:
        with self._lock:
            if self._num_open >= self._max_open:
                raise OutageError(
                    f"{self._num_open} calls for {self._name} have not finished; no more start.",
                    public=_PUBLIC,
                )
            self._num_open += 1
        future = self._threads.submit(call)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: Future[Any]) -> None:
        with self._lock:
            self._num_open -= 1

    def close(self) -> None:
        """End; calls that have not started are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
