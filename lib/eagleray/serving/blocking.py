"""Calls that may block on the registry, the database or storage, in threads of their own.

Whatever such a call waits for, it stops nobody else: the threads are few, those that wait for one
are counted, and one more is refused at once.
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

_PUBLIC = "What this request asks about does not answer in time; try again later."


class BlockingCalls:
    """A bounded pool of threads for calls of one purpose.

    Args:
        name: Of the purpose.
        num_threads: That work at a time.
        max_waiting: Calls that wait for a thread; more are refused.
        seconds: That a caller waits, for a thread and for the call together.
    """

    def __init__(self, name: str, *, num_threads: int, max_waiting: int, seconds: float) -> None:
        self._name, self._seconds = name, seconds
        self._most = num_threads + max_waiting
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._num_open = 0

    @property
    def num_open(self) -> int:
        """Calls that work or wait, given up by their callers or not."""
        with self._lock:
            return self._num_open

    async def run(self, call: Callable[..., ResultT], *args: Any, **options: Any) -> ResultT:
        """Make a call in a thread, and return what it returns.

        A call that nobody waits for any more is not begun; one that has begun goes on.

        Raises:
            OutageError: Too many calls wait already, or this one takes too long.
        """
        future = self._submit(lambda: call(*args, **options))
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.done() and not future.cancelled():
                raise  # the call's own
            raise OutageError(
                f"A call for {self._name} is not over after {self._seconds:g} s.", public=_PUBLIC
            ) from None

    def _submit(self, call: Callable[[], ResultT]) -> Future[ResultT]:
        with self._lock:
            if self._num_open >= self._most:
                raise OutageError(
                    f"{self._num_open} calls for {self._name} are not over; no more are begun.",
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
        """End; what is not begun is left."""
        self._threads.shutdown(wait=False, cancel_futures=True)
