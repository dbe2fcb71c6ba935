"""Runs the event loop of a synchronous client in a thread.

Only an event loop can end a whole call at its deadline, during name resolution, connecting or a
slow response; timeouts of single reads would start again with each byte.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["LoopThread"]

Result = TypeVar("Result")

_CLOSE_SECONDS = 5.0  # seconds for connections to close


class LoopThread:
    """Runs coroutines for callers in other threads, until it is closed or no longer referenced.

    Args:
        on_close: Coroutine that runs in the loop before it ends.
    """

    def __init__(self, on_close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_run_loop, args=(self._loop, on_close), name="eagleray-client", daemon=True
        )
        self._thread.start()
        self._lock = threading.Lock()  # nothing is put into the loop once it is told to stop
        self._stop = weakref.finalize(self, _stop_loop, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Return the result of a coroutine, or raise what it raises.

        Raises:
            RuntimeError: If the loop is closed.
        """
        with self._lock:
            if not self._stop.alive:
                coroutine.close()
                raise RuntimeError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RuntimeError("the client was closed while it waited for a response") from None
        finally:
            future.cancel()  # where the caller is interrupted; else it has ended

    def close(self) -> None:
        """End the loop and the coroutines that still run in it."""
        with self._lock:
            self._stop()
        self._thread.join(_CLOSE_SECONDS)


def _stop_loop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)


def _run_loop(
    loop: asyncio.AbstractEventLoop, on_close: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(_end(on_close))
    finally:
        loop.close()


async def _end(on_close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    waiting = asyncio.all_tasks() - {asyncio.current_task()}
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await on_close()
