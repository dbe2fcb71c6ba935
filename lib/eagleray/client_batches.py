"""The batch jobs of a service, as its clients see them: `client.batches`.

    batch = client.batches.start("s3://photos/2026/", "s3://results/2026/", "digits")
    client.batches.wait(batch.id)
    for row in client.batches.rows(batch.id): ...

To start the same batch again goes on with it, so a request that broke can be repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from pydantic import ConfigDict

from eagleray.errors import JobFailedError
from eagleray.serving.answers import BatchAnswer

__all__ = ["AsyncBatches", "Batch", "Batches"]

_PATH = "/v1/batches"
_ROWS_AT_ONCE = 1000


class Batch(BatchAnswer):
    """A batch job at one moment, as the service describes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state not in ("queued", "running")

    def require_success(self) -> Batch:
        """Return the batch, which has ended.

        Raises:
            JobFailedError: Otherwise than well.
        """
        if self.state != "succeeded":
            raise JobFailedError(f"Batch {self.id} is {self.state}: {self.message}")
        return self


def _asked(
    places: str | Sequence[str], output: str, model: str, asked: dict[str, Any]
) -> dict[str, Any]:
    given = {name: value for name, value in asked.items() if value is not None}
    inputs = places if isinstance(places, str) else list(places)
    return {"json": {"input": inputs, "output": output, "model": model, **given}}


def _page(offset: int) -> dict[str, Any]:
    return {"params": {"format": "jsonl", "offset": offset, "limit": _ROWS_AT_ONCE}}


class Batches:
    """Batch jobs of the caller.

    Args:
        ask: Puts a question to the service: method, path, and what httpx takes.
    """

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask

    def start(
        self,
        input: str | Sequence[str],  # noqa: A002 — as the service calls it
        output: str,
        model: str,
        **asked: Any,
    ) -> Batch:
        """Start a batch, or go on with the one that was started with the same words.

        Args:
            input: Folders, patterns, tables, archives or images; empty with `failed_only`.
            output: Folder or URI.
            model: NAME, NAME@ALIAS or NAME/VERSION.
            asked: `format`, `column`, `top_k`, `since`, `failed_only`, `max_failures`.

        Raises:
            RequestRefusedError: The service refuses, or does not answer.
        """
        return Batch.model_validate(self._ask("POST", _PATH, **_asked(input, output, model, asked)))

    def status(self, batch: str) -> Batch:
        """Return how far a batch is."""
        return Batch.model_validate(self._ask("GET", f"{_PATH}/{batch}"))

    def list(self) -> list[Batch]:
        """Return the latest batches, newest first."""
        return [Batch.model_validate(item) for item in self._ask("GET", _PATH)["batches"]]

    def wait(self, batch: str, *, timeout: float | None = None, every: float = 1.0) -> Batch:
        """Wait until a batch has succeeded.

        Args:
            batch: Its id.
            timeout: Seconds; None for as long as it takes.
            every: Seconds between two looks.

        Raises:
            JobFailedError: It failed, or was cancelled.
            TimeoutError: It takes longer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (found := self.status(batch)).has_ended:
            if deadline is not None and time.monotonic() + every > deadline:
                raise TimeoutError(f"batch {batch} is {found.state} after {timeout} s")
            time.sleep(every)
        return found.require_success()

    def cancel(self, batch: str) -> Batch:
        """End a batch; what is done is kept, and starting it again goes on from there."""
        return Batch.model_validate(self._ask("DELETE", f"{_PATH}/{batch}"))

    def results(self, batch: str) -> dict[str, Any]:
        """Describe the results of a batch that has succeeded: its files and counts."""
        found: dict[str, Any] = self._ask("GET", f"{_PATH}/{batch}/results")
        return found

    def rows(self, batch: str) -> Iterator[dict[str, Any]]:
        """Yield the results of a batch that has succeeded, in the order of its inputs."""
        offset = 0
        while rows := self._ask("GET", f"{_PATH}/{batch}/results", **_page(offset)):
            yield from rows
            offset += len(rows)


class AsyncBatches:
    """Batch jobs of the caller; the methods are those of `Batches`."""

    def __init__(self, ask: Callable[..., Awaitable[Any]]) -> None:
        self._ask = ask

    async def start(
        self,
        input: str | Sequence[str],  # noqa: A002 — as the service calls it
        output: str,
        model: str,
        **asked: Any,
    ) -> Batch:
        """Start a batch, as `Batches.start` does."""
        question = _asked(input, output, model, asked)
        return Batch.model_validate(await self._ask("POST", _PATH, **question))

    async def status(self, batch: str) -> Batch:
        """Return how far a batch is."""
        return Batch.model_validate(await self._ask("GET", f"{_PATH}/{batch}"))

    async def list(self) -> list[Batch]:
        """Return the latest batches, newest first."""
        return [Batch.model_validate(item) for item in (await self._ask("GET", _PATH))["batches"]]

    async def wait(self, batch: str, *, timeout: float | None = None, every: float = 1.0) -> Batch:
        """Wait until a batch has succeeded, as `Batches.wait` does."""
        async with asyncio.timeout(timeout):
            while not (found := await self.status(batch)).has_ended:
                await asyncio.sleep(every)
        return found.require_success()

    async def cancel(self, batch: str) -> Batch:
        """End a batch, as `Batches.cancel` does."""
        return Batch.model_validate(await self._ask("DELETE", f"{_PATH}/{batch}"))

    async def results(self, batch: str) -> dict[str, Any]:
        """Describe the results of a batch that has succeeded: its files and counts."""
        found: dict[str, Any] = await self._ask("GET", f"{_PATH}/{batch}/results")
        return found

    async def rows(self, batch: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the results of a batch that has succeeded, in the order of its inputs."""
        offset = 0
        while rows := await self._ask("GET", f"{_PATH}/{batch}/results", **_page(offset)):
            for row in rows:
                yield row
            offset += len(rows)
