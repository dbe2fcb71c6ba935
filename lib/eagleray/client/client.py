"""A client of the service, synchronous and asynchronous, with the same methods.

    client = Client("http://127.0.0.1:8000", key="er_…")
    client.predict("digits", Path("seven.png")).label          # "7"
    client.predict_many("digits", [first, second], top_k=3)
    client.predict("lungs", scan, attributes={"age": 41, "site": "north"})
    client.batches.start("s3://photos/2026/", "s3://results/2026/", "digits")
    client.jobs.submit("train", {"data": "s3://flowers/", "name": "flowers"})

    async with AsyncClient(url) as client:
        await client.predict("digits", image)

Any client of the Open Inference Protocol works too.

The timeout covers a call as a whole: name resolution, connections, slow responses and retries. If
the service is busy, both clients wait as long as it says and retry, a few times. They also retry
when a connection breaks. All requests are idempotent: an image may be predicted again, and starting
a batch again with the same fields returns the existing one, as does a job with the same request id.

Redirects are not followed, so the key is sent to the given address only.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel

from eagleray.client.batch_jobs import AsyncBatches, Batches, path_segment
from eagleray.client.event_loop import LoopThread
from eagleray.client.jobs import AsyncJobs, Jobs
from eagleray.client.requests import Image, request_body
from eagleray.client.responses import (
    RequestRefusedError,
    as_model,
    member,
    read_response,
    receive,
)
from eagleray.core.display import escape_text
from eagleray.core.environment import is_loopback
from eagleray.imaging.encoded import require_sequence
from eagleray.serving.prediction.responses import ImagePrediction, PredictResponse

__all__ = ["AsyncClient", "Client", "RequestRefusedError"]

Result = TypeVar("Result")

_RETRIED_STATUSES = frozenset({0, 429, 502, 503})  # 0: the connection broke
_FIRST_WAIT, _MAX_BACKOFF = 0.1, 30.0
_MAX_RESPONSE_BYTES = 64 * 2**20
_KEY = re.compile(r"[!-~]+")
_HOST = re.compile(r"[^\s\[\]%]+")
_HEADERS = {"accept-encoding": "identity"}  # a small compressed response may be huge
_MAX_SHOWN = 300  # characters of a connection error


class _Server(BaseModel):
    name: Literal["eagleray"]
    version: str


class AsyncClient:
    """An asynchronous client of a service; `jobs` has its jobs, `batches` those of predictions.

    Args:
        url: Address of the service, `http://` or `https://`, with the path of a gateway if any.
        key: Key of the application.
        timeout: Seconds for a call with its retries.
        attempts: Maximum number of attempts if the service is busy, not ready, or unreachable.
        max_response_bytes: Maximum size of a response; larger ones are not read.

    Raises:
        ValueError: If an argument is invalid.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float = 30.0,
        attempts: int = 5,
        max_response_bytes: int = _MAX_RESPONSE_BYTES,
    ) -> None:
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout is a number of seconds above 0, not {timeout!r}")
        if attempts < 1:
            raise ValueError(f"attempts is 1 or more, not {attempts!r}")
        if max_response_bytes < 1:
            raise ValueError(f"max_response_bytes is 1 or more, not {max_response_bytes!r}")
        base = _base_url(url)
        self._attempts, self._timeout = attempts, timeout
        self._max_response_bytes = max_response_bytes
        self._http = httpx.AsyncClient(
            base_url=base,
            headers=_HEADERS | _authorization(key),
            timeout=None,  # noqa: S113 — the whole call has a deadline
            follow_redirects=False,
            trust_env=not is_loopback(base.host),
        )
        self.batches = AsyncBatches(self._request)
        self.jobs = AsyncJobs(self._request)

    async def predict(self, model: str, image: Image, **fields: Any) -> ImagePrediction:
        """Predict one image.

        Args:
            model: Name of the model.
            image: Image file (bytes, path or open file), or its address.
            fields: `top_k`, `threshold`, `version`, `timeout_ms`, `explain`; and `attributes`, by
                name, for a model that takes them (a list for several images).

        Raises:
            BadImageError: If the image cannot be used.
            RequestRefusedError: If the service refuses, does not respond in time, or the response
                is not of a service of Eagleray.
            TypeError: If the image is not an image file, such as a decoded image.
            ValueError: If the model's name or an argument is invalid.
        """
        return (await self.predict_response(model, [image], **fields)).results[0]

    async def predict_many(
        self, model: str, images: Sequence[Image], **fields: Any
    ) -> list[ImagePrediction]:
        """Predict several images in one request; each result is `ok` or `failed`."""
        require_sequence(images)
        return (await self.predict_response(model, images, **fields)).results if images else []

    async def predict_response(
        self, model: str, images: Sequence[Image], **fields: Any
    ) -> PredictResponse:
        """Predict images and return the whole response."""
        path = f"/v1/models/{path_segment(model, 'model')}/predict"
        response = as_model(
            PredictResponse, await self._request("POST", path, **request_body(images, fields))
        )
        if len(response.results) != len(images):
            detail = f"the response has {len(response.results)} results for {len(images)} images"
            raise RequestRefusedError(200, {"detail": detail})
        return response

    async def models(self) -> list[dict[str, Any]]:
        """Return the models, with the version that serves each now."""
        return member(await self._request("GET", "/v1/models"), "models")

    async def version(self) -> str:
        """Return the version of Eagleray that the service runs."""
        return as_model(_Server, await self._request("GET", "/v2")).version

    async def ready(self) -> bool:
        """Whether the service is ready to serve all models that it keeps in memory."""
        try:
            async with asyncio.timeout(self._timeout), self._http.stream("GET", "/ready") as found:
                return found.is_success
        except (httpx.HTTPError, TimeoutError):
            return False

    async def _request(self, method: str, path: str, **content: Any) -> Any:
        """Send a request, and retry while that makes sense and there is time."""
        deadline = time.monotonic() + self._timeout
        refused: RequestRefusedError | None = None
        try:
            async with asyncio.timeout(self._timeout):
                for attempt in range(self._attempts):
                    try:
                        return await self._send_once(method, path, content)
                    except httpx.HTTPError as error:
                        refused = _no_response(error)
                    except RequestRefusedError as error:
                        refused = error
                    await asyncio.sleep(self._wait_before(attempt, refused, deadline))
        except TimeoutError:
            raise _timed_out(self._timeout, refused) from None
        raise AssertionError("the last attempt returns or raises")

    async def _send_once(self, method: str, path: str, content: dict[str, Any]) -> Any:
        async with self._http.stream(method, path, **content) as response:
            return read_response(await receive(response, max_bytes=self._max_response_bytes))

    def _wait_before(self, attempt: int, refused: RequestRefusedError, deadline: float) -> float:
        """Return how many seconds to wait before the next attempt.

        Raises:
            RequestRefusedError: If a retry makes no sense, or there is no time left.
        """
        if refused.status not in _RETRIED_STATUSES or attempt + 1 >= self._attempts:
            raise refused
        wait = refused.retry_after
        if wait is None:
            wait = min(_FIRST_WAIT * 2**attempt, _MAX_BACKOFF)
        wait *= random.uniform(1.0, 1.25)  # noqa: S311 — not a secret
        if time.monotonic() + wait > deadline:
            raise refused
        return wait

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@dataclass(frozen=True, slots=True)
class _Running:
    """An asynchronous client and its event loop; a forked process needs its own."""

    process: int
    client: AsyncClient
    loop: LoopThread


class Client:
    """A synchronous client of a service, with the methods of `AsyncClient`.

    Threads may share a client. It runs an event loop of its own, which starts with the first call.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float = 30.0,
        attempts: int = 5,
        max_response_bytes: int = _MAX_RESPONSE_BYTES,
    ) -> None:
        def make() -> AsyncClient:
            return AsyncClient(
                url,
                key=key,
                timeout=timeout,
                attempts=attempts,
                max_response_bytes=max_response_bytes,
            )

        make()  # refuses invalid arguments at once
        self._make = make
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._is_closed = False
        self.batches = Batches(self._run_batches)
        self.jobs = Jobs(self._run_jobs)

    def predict(self, model: str, image: Image, **fields: Any) -> ImagePrediction:
        """Predict one image, as `AsyncClient.predict` does."""
        return self._run(lambda client: client.predict(model, image, **fields))

    def predict_many(
        self, model: str, images: Sequence[Image], **fields: Any
    ) -> list[ImagePrediction]:
        """Predict several images in one request; each result is `ok` or `failed`."""
        return self._run(lambda client: client.predict_many(model, images, **fields))

    def predict_response(
        self, model: str, images: Sequence[Image], **fields: Any
    ) -> PredictResponse:
        """Predict images and return the whole response."""
        return self._run(lambda client: client.predict_response(model, images, **fields))

    def models(self) -> list[dict[str, Any]]:
        """Return the models, with the version that serves each now."""
        return self._run(lambda client: client.models())

    def version(self) -> str:
        """Return the version of Eagleray that the service runs."""
        return self._run(lambda client: client.version())

    def ready(self) -> bool:
        """Whether the service is ready to serve all models that it keeps in memory."""
        return self._run(lambda client: client.ready())

    def _run(self, call: Callable[[AsyncClient], Coroutine[Any, Any, Result]]) -> Result:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the client is closed")
            running = self._running
            if running is None or running.process != os.getpid():
                client = self._make()
                running = self._running = _Running(os.getpid(), client, LoopThread(client.close))
        return running.loop.run(call(running.client))

    def _run_batches(self, call: Callable[[AsyncBatches], Coroutine[Any, Any, Result]]) -> Result:
        return self._run(lambda client: call(client.batches))

    def _run_jobs(self, call: Callable[[AsyncJobs], Coroutine[Any, Any, Result]]) -> Result:
        return self._run(lambda client: call(client.jobs))

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            running, self._running, self._is_closed = self._running, None, True
        if running is not None and running.process == os.getpid():
            running.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _base_url(url: str) -> httpx.URL:
    """Read the address of a service.

    Raises:
        ValueError: If the address is invalid; the message does not repeat a password.
    """
    try:
        base = httpx.URL(url.rstrip("/"))
        usable = (
            base.scheme in ("http", "https")
            and _HOST.fullmatch(base.host) is not None
            and not (base.query or base.fragment)
            and (base.port is None or 0 < base.port < 2**16)
        )
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise ValueError(
            "the address of a service is http://HOST:PORT or https://HOST:PORT, with a path where "
            "a gateway has one, and without a query"
        )
    return base


def _authorization(key: str | None) -> dict[str, str]:
    """Return the header that carries a key.

    Raises:
        ValueError: If a header cannot hold the key; the message does not repeat it.
    """
    if key is None:
        return {}
    if not _KEY.fullmatch(key):
        raise ValueError(
            "the key has a space, a line break or another invalid character; was it read from a "
            "file with a line break at its end?"
        )
    return {"authorization": f"Bearer {key}"}


def _no_response(error: httpx.HTTPError) -> RequestRefusedError:
    said = escape_text(str(error) or type(error).__name__)[:_MAX_SHOWN]
    return RequestRefusedError(0, {"detail": f"the service does not respond ({said})"})


def _timed_out(timeout: float, refused: RequestRefusedError | None) -> RequestRefusedError:
    before = "" if refused is None else f"; before that, {refused}"
    detail = f"the service has not responded within {timeout:g} s{before}"
    return RequestRefusedError(0, {"detail": detail})
