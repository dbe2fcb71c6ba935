"""Starts and follows batch jobs of a service: `client.batches`.

    batch = client.batches.start("s3://photos/2026/", "s3://results/2026/", "digits")
    client.batches.wait(batch.id)
    for row in client.batches.rows(batch.id): ...

Starting the same batch again returns the existing one, so a request whose connection broke is
repeated: the service identifies a batch by its output and all fields of its request.
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
from eagleray.serving.prediction.responses import BatchResponse

__all__ = ["AsyncBatches", "Batch", "Batches", "path_segment"]

Result = TypeVar("Result")

_PATH = "/v1/batches"
_ROWS_PER_PAGE = 1000
_MAX_SHOWN = 60  # characters of a name that is refused


class Batch(BatchResponse):
    """A batch job at one moment, as the service describes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @property
    def has_ended(self) -> bool:
        """Whether the batch has ended."""
        return self.state.has_ended

    def require_success(self) -> Batch:
        """Return the batch if it has succeeded.

        Raises:
            JobFailedError: If it failed or was cancelled.
        """
        if self.state != JobState.SUCCEEDED:
            raise JobFailedError(escape_text(f"Batch {self.id} is {self.state}: {self.message}"))
        return self


def path_segment(name: str, kind: str) -> str:
    """Return a name as one segment of a URL path.

    Args:
        name: Any text; characters that have a meaning in URLs, such as `?`, are quoted.
        kind: Kind of thing that is named, for messages.

    Raises:
        TypeError: If the name is not a string.
        ValueError: If the name could lead to another path, or has characters that are not
            printable.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a {kind} is a str, not a {type(name).__name__}")
    if name.strip(".") == "" or "/" in name or "\\" in name or not name.isprintable():
        shown = ascii(name[:_MAX_SHOWN])
        hint = "; its version is another argument, version=…" if kind == "model" else ""
        raise ValueError(f"{shown} cannot name a {kind}: a name is one segment of a URL path{hint}")
    return quote(name, safe="")


def _body(
    inputs: str | Sequence[str], output: str, model: str, fields: dict[str, Any]
) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value is not None}
    named = inputs if isinstance(inputs, str) else list(inputs)
    return {"json": {"inputs": named, "output": output, "model": model, **given}}


def _page(offset: int) -> dict[str, Any]:
    return {"params": {"format": "jsonl", "offset": offset, "limit": _ROWS_PER_PAGE}}


def _batch_path(batch: str) -> str:
    return f"{_PATH}/{path_segment(batch, 'batch')}"


class AsyncBatches:
    """Batch jobs of the caller.

    Args:
        send: Sends a request to the service: method, path, and keyword arguments of httpx.
    """

    def __init__(self, send: Callable[..., Awaitable[Any]]) -> None:
        self._send = send

    async def start(
        self,
        inputs: str | Sequence[str],
        output: str,
        model: str,
        **fields: Any,
    ) -> Batch:
        """Start a batch, or return the one that was started with the same fields.

        The request may be sent several times, because a broken connection does not tell whether it
        arrived. That starts one batch: the service returns the batch of this caller with the same
        output and the same fields while it waits, runs or has succeeded, and resumes it if it
        failed or was cancelled. Other fields for the same output are refused.

        Args:
            inputs: Folders, patterns, tables, archives or images; empty with `failed_only`.
            output: Folder or URI.
            model: NAME, NAME@ALIAS or NAME/VERSION.
            fields: `format`, `column`, `top_k`, `since`, `failed_only`, `max_failures`.

        Raises:
            RequestRefusedError: If the service refuses, does not respond in time, or the response
                is not of a service of Eagleray.
        """
        body = _body(inputs, output, model, fields)
        return as_model(Batch, await self._send("POST", _PATH, **body))

    async def status(self, batch: str) -> Batch:
        """Return the state of a batch."""
        return as_model(Batch, await self._send("GET", _batch_path(batch)))

    async def list(self) -> list[Batch]:
        """Return the latest batches, newest first."""
        found = member(await self._send("GET", _PATH), "batches")
        return [as_model(Batch, item) for item in found]

    async def wait(self, batch: str, *, timeout: float | None = None, every: float = 1.0) -> Batch:
        """Wait until a batch has succeeded.

        Args:
            batch: Id of the batch.
            timeout: Seconds to wait; None for no limit.
            every: Seconds between two requests.

        Raises:
            JobFailedError: If the batch failed or was cancelled.
            RequestRefusedError: If the service refuses or does not respond.
            TimeoutError: If the batch does not end in time.
        """
        state = "unknown"
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
        """Cancel a batch; finished shards are kept, and starting it again resumes it."""
        return as_model(Batch, await self._send("DELETE", _batch_path(batch)))

    async def results(self, batch: str) -> dict[str, Any]:
        """Describe the results of a batch that has succeeded: its files and counts."""
        found = await self._send("GET", f"{_batch_path(batch)}/results")
        if not isinstance(found, dict):
            raise _no_rows("no JSON object")
        return found

    async def rows(self, batch: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the results of a batch that has succeeded, in the order of its inputs."""
        offset = 0
        while rows := await self.page(batch, offset):
            for row in rows:
                yield row
            offset += len(rows)

    async def page(self, batch: str, offset: int) -> Sequence[dict[str, Any]]:
        """Return up to a thousand results from one on; an empty list after the last."""
        rows = await self._send("GET", f"{_batch_path(batch)}/results", **_page(offset))
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _no_rows("no lines of JSON objects")
        if len(rows) > _ROWS_PER_PAGE:
            raise _no_rows(f"more than the {_ROWS_PER_PAGE:,} rows that were asked for")
        return rows


def _no_rows(found: str) -> RequestRefusedError:
    detail = f"the response has {found}, so it is not of a service of Eagleray; check the address"
    return RequestRefusedError(200, {"detail": detail})


class Runner(Protocol):
    """Runs a call of the asynchronous methods and waits for its result."""

    def __call__(self, call: Callable[[AsyncBatches], Coroutine[Any, Any, Result]], /) -> Result:
        """Return the result of the call."""


class Batches:
    """Batch jobs of the caller; the methods are those of `AsyncBatches`.

    Args:
        run: Runs a call of `AsyncBatches`.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run

    def start(
        self,
        inputs: str | Sequence[str],
        output: str,
        model: str,
        **fields: Any,
    ) -> Batch:
        """Start a batch, or return the one that was started with the same fields.

        As with `AsyncBatches.start`, the request may be sent several times and starts one batch.
        """
        return self._run(lambda batches: batches.start(inputs, output, model, **fields))

    def status(self, batch: str) -> Batch:
        """Return the state of a batch."""
        return self._run(lambda batches: batches.status(batch))

    def list(self) -> list[Batch]:
        """Return the latest batches, newest first."""
        return self._run(lambda batches: batches.list())

    def wait(self, batch: str, *, timeout: float | None = None, every: float = 1.0) -> Batch:
        """Wait until a batch has succeeded, as `AsyncBatches.wait` does."""
        return self._run(lambda batches: batches.wait(batch, timeout=timeout, every=every))

    def cancel(self, batch: str) -> Batch:
        """Cancel a batch; finished shards are kept, and starting it again resumes it."""
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
