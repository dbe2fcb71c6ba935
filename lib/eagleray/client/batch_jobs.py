"""The batch jobs of a service, as its clients see them: `client.batches`.

    batch = client.batches.start("s3://photos/2026/", "s3://results/2026/", "digits")
    client.batches.wait(batch.id)
    for row in client.batches.rows(batch.id): ...

To start the same batch again returns the one that there is, so a request that broke is repeated:
the service knows a batch by its output and all the words that it was asked for in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from pydantic import ConfigDict

from eagleray.client.responses import RequestRefusedError, as_model, member
from eagleray.core.display import escape_text
from eagleray.core.errors import JobFailedError
from eagleray.core.job_state import JobState
from eagleray.serving.responses import BatchResponse

__all__ = ["AsyncBatches", "Batch", "Batches", "path_segment"]

Result = TypeVar("Result")

_PATH = "/v1/batches"
_ROWS_AT_ONCE = 1000
_MAX_SHOWN = 60  # characters of a name that is refused


class Batch(BatchResponse):
    """A batch job at one moment, as the service describes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state.has_ended

    def require_success(self) -> Batch:
        """Return the batch, which has ended.

        Raises:
            JobFailedError: Otherwise than well.
        """
        if self.state != JobState.SUCCEEDED:
            raise JobFailedError(escape_text(f"Batch {self.id} is {self.state}: {self.message}"))
        return self


def path_segment(name: str, kind: str) -> str:
    """Return a name as one part of a path, which no name can leave.

    Args:
        name: Any text; what a URL gives a meaning, such as `?`, is quoted.
        kind: Of thing that it names, for the message.

    Raises:
        TypeError: It is no text.
        ValueError: It could lead elsewhere, or holds characters that cannot be seen.
    """
    if not isinstance(name, str):
        raise TypeError(f"a {kind} is named by a text, not a {type(name).__name__}")
    if name.strip(".") == "" or "/" in name or "\\" in name or not name.isprintable():
        shown = ascii(name[:_MAX_SHOWN])
        hint = "; its version is another argument, version=…" if kind == "model" else ""
        raise ValueError(f"{shown} cannot name a {kind}: a name is one part of an address{hint}")
    return quote(name, safe="")


def _asked(
    inputs: str | Sequence[str], output: str, model: str, asked: dict[str, Any]
) -> dict[str, Any]:
    given = {name: value for name, value in asked.items() if value is not None}
    named = inputs if isinstance(inputs, str) else list(inputs)
    return {"json": {"inputs": named, "output": output, "model": model, **given}}


def _page(offset: int) -> dict[str, Any]:
    return {"params": {"format": "jsonl", "offset": offset, "limit": _ROWS_AT_ONCE}}


def _batch_path(batch: str) -> str:
    return f"{_PATH}/{path_segment(batch, 'batch')}"


class AsyncBatches:
    """Batch jobs of the caller.

    Args:
        ask: Puts a question to the service: method, path, and what httpx takes.
    """

    def __init__(self, ask: Callable[..., Awaitable[Any]]) -> None:
        self._ask = ask

    async def start(
        self,
        inputs: str | Sequence[str],
        output: str,
        model: str,
        **asked: Any,
    ) -> Batch:
        """Start a batch, or return the one that was started with the same words.

        The request may be sent several times, since a connection that broke does not tell whether
        it arrived. That starts one batch: the service returns the batch of this caller with the
        same output and the same words while it waits, runs or has succeeded, and goes on with it
        where it had failed or was cancelled. Other words for the same output are refused.

        Args:
            inputs: Folders, patterns, tables, archives or images; empty with `failed_only`.
            output: Folder or URI.
            model: NAME, NAME@ALIAS or NAME/VERSION.
            asked: `format`, `column`, `top_k`, `since`, `failed_only`, `max_failures`.

        Raises:
            RequestRefusedError: The service refuses, does not answer in time, or something else
                answers.
        """
        question = _asked(inputs, output, model, asked)
        return as_model(Batch, await self._ask("POST", _PATH, **question))

    async def status(self, batch: str) -> Batch:
        """Return how far a batch is."""
        return as_model(Batch, await self._ask("GET", _batch_path(batch)))

    async def list(self) -> list[Batch]:
        """Return the latest batches, newest first."""
        found = member(await self._ask("GET", _PATH), "batches")
        return [as_model(Batch, item) for item in found]

    async def wait(self, batch: str, *, timeout: float | None = None, every: float = 1.0) -> Batch:
        """Wait until a batch has succeeded.

        Args:
            batch: Its id.
            timeout: Seconds; None for as long as it takes.
            every: Seconds between two looks.

        Raises:
            JobFailedError: It failed, or was cancelled.
            RequestRefusedError: The service cannot be asked.
            TimeoutError: It takes longer.
        """
        state = "not known"
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                while not (found := await self.status(batch)).has_ended:
                    state = found.state
                    if deadline is not None and time.monotonic() + every > deadline:
                        raise TimeoutError
                    await asyncio.sleep(every)
        except TimeoutError:
            raise TimeoutError(f"batch {batch} is {state} after {timeout} s") from None
        return found.require_success()

    async def cancel(self, batch: str) -> Batch:
        """End a batch; what is done is kept, and starting it again goes on from there."""
        return as_model(Batch, await self._ask("DELETE", _batch_path(batch)))

    async def results(self, batch: str) -> dict[str, Any]:
        """Describe the results of a batch that has succeeded: its files and counts."""
        found = await self._ask("GET", f"{_batch_path(batch)}/results")
        if not isinstance(found, dict):
            raise _no_rows("no object")
        return found

    async def rows(self, batch: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the results of a batch that has succeeded, in the order of its inputs."""
        offset = 0
        while rows := await self.page(batch, offset):
            for row in rows:
                yield row
            offset += len(rows)

    async def page(self, batch: str, offset: int) -> Sequence[dict[str, Any]]:
        """Return up to a thousand results from one on; none after the last."""
        rows = await self._ask("GET", f"{_batch_path(batch)}/results", **_page(offset))
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _no_rows("no lines of objects")
        if len(rows) > _ROWS_AT_ONCE:
            raise _no_rows(f"more than the {_ROWS_AT_ONCE:,} rows that were asked for")
        return rows


def _no_rows(found: str) -> RequestRefusedError:
    detail = f"the answer has {found}, so it is not of a service of Eagleray; check the address"
    return RequestRefusedError(200, {"detail": detail})


class Runner(Protocol):
    """Runs a call of the asynchronous methods, and waits for its result."""

    def __call__(self, call: Callable[[AsyncBatches], Coroutine[Any, Any, Result]], /) -> Result:
        """Return what the call returns."""


class Batches:
    """Batch jobs of the caller; the methods are those of `AsyncBatches`.

    Args:
        run: Runs them.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run

    def start(
        self,
        inputs: str | Sequence[str],
        output: str,
        model: str,
        **asked: Any,
    ) -> Batch:
        """Start a batch, or return the one that was started with the same words.

        As of `AsyncBatches.start`, the request may be sent several times and starts one batch.
        """
        return self._run(lambda batches: batches.start(inputs, output, model, **asked))

    def status(self, batch: str) -> Batch:
        """Return how far a batch is."""
        return self._run(lambda batches: batches.status(batch))

    def list(self) -> list[Batch]:
        """Return the latest batches, newest first."""
        return self._run(lambda batches: batches.list())

    def wait(self, batch: str, *, timeout: float | None = None, every: float = 1.0) -> Batch:
        """Wait until a batch has succeeded, as `AsyncBatches.wait` does."""
        return self._run(lambda batches: batches.wait(batch, timeout=timeout, every=every))

    def cancel(self, batch: str) -> Batch:
        """End a batch; what is done is kept, and starting it again goes on from there."""
        return self._run(lambda batches: batches.cancel(batch))

    def results(self, batch: str) -> dict[str, Any]:
        """Describe the results of a batch that has succeeded: its files and counts."""
        return self._run(lambda batches: batches.results(batch))

    def rows(self, batch: str) -> Iterator[dict[str, Any]]:
        """Yield the results of a batch that has succeeded, in the order of its inputs."""
        offset = 0
        while rows := self._page(batch, offset):
            yield from rows
            offset += len(rows)

    def _page(self, batch: str, offset: int) -> Sequence[dict[str, Any]]:
        return self._run(lambda batches: batches.page(batch, offset))
