"""A client of the service, synchronous and asynchronous, with the same methods.

    client = Client("http://127.0.0.1:8000", key="er_…")
    client.predict("digits", Path("seven.png")).label          # "7"
    client.predict_many("digits", [first, second], top_k=3)
    client.predict("lungs", scan, attributes={"age": 41, "site": "north"})
    client.batches.start("s3://photos/2026/", "s3://results/2026/", "digits")

    async with AsyncClient(url) as client:
        await client.predict("digits", image)

Any client of the Open Inference Protocol works too.

A call ends within its time-out, wherever it is: while a name is resolved, a server sends a byte a
second, or the service is asked again. A busy service says when to come again; both clients wait
that long and ask again, a few times. They do the same when a connection breaks, with every request:
none does anything twice. To predict an image again does no harm, and a batch that is started again
with the same words is the one that runs already.

Redirects are not followed, so the key goes to the address that was given and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx

from eagleray.client.batch_jobs import AsyncBatches, Batches, path_segment
from eagleray.client.event_loop import LoopThread
from eagleray.client.responses import (
    RequestRefusedError,
    as_model,
    member,
    read_answer,
    receive,
)
from eagleray.core.display import escape_text
from eagleray.core.environment import is_loopback
from eagleray.imaging.encoded import EncodedImage, encoded_bytes, require_sequence
from eagleray.serving.responses import ImagePrediction, PredictResponse

__all__ = ["AsyncClient", "Client", "RequestRefusedError", "request_body"]

Image = EncodedImage | str
"""An image file (bytes, path, open file), or the address (`https://…`, `s3://…`) that the service
reads."""

Result = TypeVar("Result")

_PASSING = frozenset({0, 429, 502, 503})  # 0: the connection broke
_FIRST_WAIT, _MAX_BACKOFF = 0.1, 30.0
_MAX_RESPONSE_BYTES = 64 * 2**20
_KEY = re.compile(r"[!-~]+")
_HOST = re.compile(r"[^\s\[\]%]+")
_HEADERS = {"accept-encoding": "identity"}  # an answer that is small when it comes, and not after
_MAX_SHOWN = 300  # characters of what broke a connection


class AsyncClient:
    """Asks a service, and waits for its answers; `batches` are its batch jobs.

    Args:
        url: Of the service, `http://` or `https://`, with the path of a gateway if need be.
        key: Of the application.
        timeout: Seconds for a call, with its repetitions.
        attempts: At most, where the service is busy, not ready, or out of reach.
        max_response_bytes: Larger answers are refused, and not read further.

    Raises:
        ValueError: An argument is none of these.
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

    async def predict(self, model: str, image: Image, **asked: Any) -> ImagePrediction:
        """Predict one image.

        Args:
            model: Name.
            image: Its file (bytes, path or open file), or its address.
            asked: `top_k`, `threshold`, `version`, `timeout_ms`; and `attributes`, by name, for a
                model that takes them (of several images, a list).

        Raises:
            BadImageError: The image cannot be used.
            RequestRefusedError: The service refuses, does not answer in time, or something else
                answers.
            TypeError: It is no image file, such as a decoded image.
            ValueError: The model's name cannot be one, or an argument does not fit the others.
        """
        return (await self.ask(model, [image], **asked)).results[0]

    async def predict_many(
        self, model: str, images: Sequence[Image], **asked: Any
    ) -> list[ImagePrediction]:
        """Predict several images in one request; each has its result, `ok` or `failed`."""
        require_sequence(images)
        return (await self.ask(model, images, **asked)).results if images else []

    async def ask(self, model: str, images: Sequence[Image], **asked: Any) -> PredictResponse:
        """Predict images and return all that the service says."""
        path = f"/v1/models/{path_segment(model, 'model')}/predict"
        answer = as_model(
            PredictResponse, await self._request("POST", path, **request_body(images, asked))
        )
        if len(answer.results) != len(images):
            detail = f"the answer has {len(answer.results)} results for {len(images)} images"
            raise RequestRefusedError(200, {"detail": detail})
        return answer

    async def models(self) -> list[dict[str, Any]]:
        """Return the models, with what answers for each now."""
        return member(await self._request("GET", "/v1/models"), "models")

    async def ready(self) -> bool:
        """Whether the service answers for all the models that it keeps."""
        try:
            async with asyncio.timeout(self._timeout), self._http.stream("GET", "/ready") as found:
                return found.is_success
        except (httpx.HTTPError, TimeoutError):
            return False

    async def _request(self, method: str, path: str, **question: Any) -> Any:
        """Ask until there is an answer, or no use in asking again, or no time."""
        deadline = time.monotonic() + self._timeout
        refused: RequestRefusedError | None = None
        try:
            async with asyncio.timeout(self._timeout):
                for attempt in range(self._attempts):
                    try:
                        return await self._ask_once(method, path, question)
                    except httpx.HTTPError as error:
                        refused = _nothing_came(error)
                    except RequestRefusedError as error:
                        refused = error
                    await asyncio.sleep(self._wait_before(attempt, refused, deadline))
        except TimeoutError:
            raise _too_late(self._timeout, refused) from None
        raise AssertionError("the last attempt returns or raises")

    async def _ask_once(self, method: str, path: str, question: dict[str, Any]) -> Any:
        async with self._http.stream(method, path, **question) as response:
            return read_answer(await receive(response, max_bytes=self._max_response_bytes))

    def _wait_before(self, attempt: int, refused: RequestRefusedError, deadline: float) -> float:
        """Return how long to wait before asking again.

        Raises:
            RequestRefusedError: There is no use in it, or no time.
        """
        if refused.status not in _PASSING or attempt + 1 >= self._attempts:
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
    """An asynchronous client and the loop that runs it; a forked process needs its own."""

    process: int
    client: AsyncClient
    loop: LoopThread


class Client:
    """Asks a service, and waits for its answers; else it is as `AsyncClient`.

    Threads may share one. It waits in an event loop of its own, which starts with the first call.
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

        make()  # refuses what cannot be, at once
        self._make = make
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._is_closed = False
        self.batches = Batches(self._run_batches)

    def predict(self, model: str, image: Image, **asked: Any) -> ImagePrediction:
        """Predict one image, as `AsyncClient.predict` does."""
        return self._run(lambda client: client.predict(model, image, **asked))

    def predict_many(
        self, model: str, images: Sequence[Image], **asked: Any
    ) -> list[ImagePrediction]:
        """Predict several images in one request; each has its result, `ok` or `failed`."""
        return self._run(lambda client: client.predict_many(model, images, **asked))

    def ask(self, model: str, images: Sequence[Image], **asked: Any) -> PredictResponse:
        """Predict images and return all that the service says."""
        return self._run(lambda client: client.ask(model, images, **asked))

    def models(self) -> list[dict[str, Any]]:
        """Return the models, with what answers for each now."""
        return self._run(lambda client: client.models())

    def ready(self) -> bool:
        """Whether the service answers for all the models that it keeps."""
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
        ValueError: It is none; the message does not repeat a password.
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
        ValueError: A header cannot hold it; the message does not repeat it.
    """
    if key is None:
        return {}
    if not _KEY.fullmatch(key):
        raise ValueError(
            "the key has a space, a line break or another character that no key has; was it read "
            "from a file with a line break at its end?"
        )
    return {"authorization": f"Bearer {key}"}


def request_body(images: Sequence[Image], asked: dict[str, Any]) -> dict[str, Any]:
    """Return what httpx posts: a form of files, or JSON where the service reads them.

    Args:
        images: Files or addresses.
        asked: Parameters of the request, and `attributes`.

    Raises:
        TypeError: One is no image file.
        ValueError: They do not fit each other.
    """
    params = {name: value for name, value in asked.items() if value is not None}
    attributes = params.pop("attributes", None)
    require_sequence(images)
    known = [attributes] if isinstance(attributes, Mapping) else attributes
    if known is not None and len(known) != len(images):
        raise ValueError(f"{len(images)} images have {len(known)} attributes; one is for each")
    links = [image for image in images if isinstance(image, str)]
    if links and len(links) < len(images):
        raise ValueError("images are either addresses or bytes and files, in one request")
    if links:
        described: list[dict[str, Any]] = [_described(link) for link in links]
        if known is not None:
            described = [
                {**link, "attributes": dict(one)}
                for link, one in zip(described, known, strict=True)
            ]
        body = {"image": described[0]} if len(links) == 1 else {"images": described}
        return {"json": {**body, **params}}
    contents = [encoded_bytes(item) for item in images]
    if len(contents) == 1 and known is None:
        return {"params": params, "content": contents[0]}
    files = [("image", (str(number), item)) for number, item in enumerate(contents)]
    # In the body, where no log of addresses shows what is known of a person.
    data = {} if known is None else {"attributes": json.dumps([dict(one) for one in known])}
    return {"params": params, "files": files, "data": data}


def _described(address: str) -> dict[str, Any]:
    """Return the member of a JSON body that an address is.

    Raises:
        ValueError: It is none, but probably a file of this machine.
    """
    if address[:5].lower() == "data:":
        return {"base64": address}
    if "://" not in address and not address.startswith("/"):
        raise ValueError(
            f"{address!r} is no address that a service reads; write Path(…) for a file of your own"
        )
    return {"url" if address.lower().startswith(("http://", "https://")) else "uri": address}


def _nothing_came(error: httpx.HTTPError) -> RequestRefusedError:
    said = escape_text(str(error) or type(error).__name__)[:_MAX_SHOWN]
    return RequestRefusedError(0, {"detail": f"the service does not answer ({said})"})


def _too_late(timeout: float, refused: RequestRefusedError | None) -> RequestRefusedError:
    before = "" if refused is None else f"; before that, {refused}"
    detail = f"the service has not answered within {timeout:g} s{before}"
    return RequestRefusedError(0, {"detail": detail})
