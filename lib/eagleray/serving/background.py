"""Runs the background tasks of a service in its event loop, once or at intervals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

__all__ = ["BackgroundTasks"]

log = logging.getLogger(__name__)


class BackgroundTasks:
    """The tasks of one service, which end with it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a task."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def repeat(self, step: Callable[[], Awaitable[None]], *, seconds: float) -> None:
        """Run a step at intervals until the end.

        An error does not end the repetition. It is logged, unless it is the same as the one before.
        """
        self.run(_repeat(step, seconds))

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in list(self._tasks):
            task.cancel()


async def _repeat(step: Callable[[], Awaitable[None]], seconds: float) -> None:
    last = ""
    while True:
        try:
            await step()
        except Exception as error:
            kind = f"{type(error).__name__}: {error}"
            if kind != last:
                log.exception("a task that runs every %g s failed; it is tried again", seconds)
            last = kind
        else:
            last = ""
        await asyncio.sleep(seconds)
