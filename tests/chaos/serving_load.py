"""Sends requests to a service at a fixed rate, over HTTP and gRPC, and records the results.

Requests are sent when they are due, whether earlier ones are complete or not. Nothing is sent
twice: a request that breaks counts as failed, and the next one connects again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from tests.support.service import RunningService

__all__ = ["Load", "RefusedError", "Sent", "request_prediction", "steady_load"]

_TIMEOUT_SECONDS = 60.0  # seconds that a caller waits for a response


class RefusedError(Exception):
    """A response that is no prediction."""


@dataclass(frozen=True)
class Sent:
    """A request that was sent.

    Attributes:
        at: Second at which it was sent, on the monotonic clock.
        ended: Second at which the response was complete, or the failure was known.
        version: Version that predicted; 0 for a failure.
        failure: What went wrong; empty for a good response.
    """

    at: float
    ended: float
    version: int
    failure: str


@dataclass
class Load:
    """Results of the requests, all or those in an interval."""

    sent: list[Sent] = field(default_factory=list)

    async def record(self, request_prediction: Callable[[], Awaitable[int]]) -> None:
        """Await one request, which returns the version that predicted, and record its result."""
        began, version, failure = time.monotonic(), 0, ""
        try:
            version = await request_prediction()
        except RefusedError as error:
            failure = str(error)
        except httpx.HTTPError as error:
            failure = f"HTTP {type(error).__name__}"
        except InferenceServerException as error:
            failure = f"gRPC {str(error.status()).removeprefix('StatusCode.')}"
        self.sent.append(Sent(began, time.monotonic(), version, failure))

    def under_way(self, moment: float) -> Load:
        """Return the requests that were sent before a moment, and had no outcome then."""
        return Load([item for item in self.sent if item.at <= moment <= item.ended])

    def during(self, begin: float, end: float) -> Load:
        """Return the requests that were sent or under way between two moments."""
        return Load([item for item in self.sent if item.ended >= begin and item.at <= end])

    def failures(self) -> Counter[str]:
        """Count what went wrong."""
        return Counter(item.failure for item in self.sent if item.failure)

    def longest_gap(self, begin: float, end: float) -> float:
        """Return the longest time without a good response between two moments, in seconds."""
        good = sorted(item.ended for item in self.sent if not item.failure)
        moments = [begin, *(moment for moment in good if begin <= moment <= end), end]
        return max(after - before for before, after in itertools.pairwise(moments))

    def slowest(self) -> float:
        """Return the longest time that a good response took, in seconds."""
        good = (item.ended - item.at for item in self.sent if not item.failure)
        return max(good, default=0.0)


@contextlib.asynccontextmanager
async def steady_load(
    service: RunningService,
    model: str,
    image: bytes,
    *,
    rate: float,
    grpc_rate: float,
    key: str = "",
) -> AsyncIterator[Load]:
    """Send predictions for the time of the block; at its end every request has its outcome.

    Args:
        service: Service under load.
        model: Name of the model that predicts.
        image: Image of every request.
        rate: HTTP requests a second, over persistent connections.
        grpc_rate: gRPC calls a second, over one channel.
        key: Key of an application; empty where none is needed.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    load, stop = Load(), asyncio.Event()
    limits = httpx.Limits(max_connections=500, max_keepalive_connections=50)
    async with (
        httpx.AsyncClient(
            base_url=service.url, timeout=_TIMEOUT_SECONDS, limits=limits, headers=headers
        ) as http,
        tritonclient.grpc.aio.InferenceServerClient(service.grpc) as grpc,
    ):

        async def request_http() -> int:
            return await request_prediction(http, model, content=image)

        tensor = tritonclient.grpc.InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.asarray([image], dtype=object))

        async def request_grpc() -> int:
            response = await grpc.infer(
                model, [tensor], client_timeout=_TIMEOUT_SECONDS, headers=headers
            )
            return int(response.get_response().model_version)

        sending = [
            asyncio.create_task(_send(way, at, load, stop))
            for way, at in ((request_http, rate), (request_grpc, grpc_rate))
            if at
        ]
        try:
            yield load
        finally:
            stop.set()
            await asyncio.gather(*sending)


async def request_prediction(client: httpx.AsyncClient, model: str, **body: Any) -> int:
    """Request a prediction over HTTP, and return the version that predicted.

    Raises:
        RefusedError: The response is no prediction.
        httpx.HTTPError: There is none.
    """
    response = await client.post(f"/v1/models/{model}/predict", **body)
    if response.status_code != 200:
        raise RefusedError(f"HTTP {response.status_code}")
    body = response.json()
    if failed := [item["reason"] for item in body["results"] if item["status"] != "ok"]:
        raise RefusedError(f"HTTP {', '.join(failed)}")
    return int(body["version"])


async def _send(
    request_prediction: Callable[[], Awaitable[int]], rate: float, load: Load, stop: asyncio.Event
) -> None:
    """Send requests at a fixed rate until stopped, and wait for the last of them."""
    pending: set[asyncio.Task[None]] = set()
    due = time.monotonic()
    while not stop.is_set():
        task = asyncio.create_task(load.record(request_prediction))
        pending.add(task)
        task.add_done_callback(pending.discard)
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*pending)
