"""A client of the service, synchronous and asynchronous, with the same methods.

    client = Client("http://127.0.0.1:8000", key="er_…")
    client.predict("digits", Path("seven.png")).label          # "7"
    client.predict_many("digits", [first, second], top_k=3)
    client.predict("lungs", scan, attributes={"age": 41, "site": "north"})
    client.batches.start("s3://photos/2026/", "s3://results/2026/", "digits")

    async with AsyncClient(url) as client:
        await client.predict("digits", image)

Any client of the Open Inference Protocol works too.

A busy service says when to come again; both clients wait that long and ask again, a few times.
They do the same when a connection breaks: to predict an image twice does no harm.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from eagleray.client_batches import AsyncBatches, Batches
from eagleray.encoded import EncodedImage, encoded_bytes, require_several
from eagleray.environment import LOOPBACK
from eagleray.errors import BadImageError, EaglerayError, Reason
from eagleray.serving.answers import Answer, ImageAnswer

__all__ = ["AsyncClient", "Client", "RequestRefusedError"]

Image = EncodedImage | str
"""An image file (bytes, path, open file), or the address (`https://…`, `s3://…`) that the service
reads."""

_PASSING = frozenset({0, 429, 502, 503})  # 0: the connection broke
_JSON_LINES = "application/jsonl"
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 30.0


class RequestRefusedError(EaglerayError):
    """The service did not answer.

    Attributes:
        status: Of HTTP; 0 where nothing came back.
        problem: The problem document.
        retry_after: Seconds after which the service wants to be asked again.
    """

    def __init__(
        self, status: int, problem: dict[str, Any], retry_after: float | None = None
    ) -> None:
        super().__init__(str(problem.get("detail") or f"the service answered {status}"))
        self.status, self.problem, self.retry_after = status, problem, retry_after


class _Asking(ABC):
    """What both clients share: how a question is put, and how an answer is read."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float = 30.0,
        attempts: int = 5,
    ) -> None:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._attempts, self._timeout = attempts, timeout
        base = httpx.URL(url.rstrip("/"))
        self._open(
            base_url=base, headers=headers, timeout=timeout, trust_env=base.host not in LOOPBACK
        )

    @abstractmethod
    def _open(self, **options: Any) -> None:
        """Make the client of HTTP."""

    @staticmethod
    def _question(images: Sequence[Image], asked: dict[str, Any]) -> dict[str, Any]:
        """Return what is posted: a form of files, or JSON where the service reads them."""
        params = {name: value for name, value in asked.items() if value is not None}
        attributes = params.pop("attributes", None)
        require_several(images)
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
        # In the body, where no log of addresses shows what is known of somebody.
        data = {} if known is None else {"attributes": json.dumps([dict(one) for one in known])}
        return {"params": params, "files": files, "data": data}

    def _wait_before(self, attempt: int, refused: RequestRefusedError, deadline: float) -> float:
        """Return how long to wait before asking again.

        Raises:
            RequestRefusedError: There is no use in it, or no time.
        """
        if refused.status not in _PASSING or attempt + 1 >= self._attempts:
            raise refused
        wait = refused.retry_after
        if wait is None:
            wait = _FIRST_WAIT * 2**attempt
        wait = min(wait, _LONGEST_WAIT) * random.uniform(1.0, 1.25)  # noqa: S311 — not a secret
        if time.monotonic() + wait > deadline:
            raise refused
        return wait

    @staticmethod
    def _read(response: httpx.Response) -> Any:
        """Return what a response holds.

        Raises:
            BadImageError: The only image of the request cannot be used.
            RequestRefusedError: The service refuses the request.
        """
        if response.is_success:
            if response.headers.get("content-type", "").startswith(_JSON_LINES):
                return [json.loads(line) for line in response.text.split("\n") if line]
            return response.json()
        try:
            problem = response.json()
        except ValueError:
            problem = {}
        if not isinstance(problem, dict):
            problem = {}
        if problem.get("reason") in Reason.__members__.values():
            raise BadImageError(Reason(problem["reason"]), str(problem.get("detail")))
        text = response.headers.get("retry-after", "")
        raise RequestRefusedError(
            response.status_code, problem, float(text) if text.isdecimal() else None
        )

    @staticmethod
    def _answer(body: Any) -> Answer:
        try:
            return Answer.model_validate(body)
        except ValidationError as error:
            text = f"the service's answer cannot be read ({error.error_count()} faults)"
            raise RequestRefusedError(200, {"detail": text}) from error


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


def _has_images(images: Sequence[Image]) -> bool:
    require_several(images)
    return bool(images)


def _path(model: str) -> str:
    return f"/v1/models/{quote(model, safe='')}/predict"


def _nothing_came(error: httpx.HTTPError) -> RequestRefusedError:
    return RequestRefusedError(0, {"detail": f"the service does not answer ({error})"})


class Client(_Asking):
    """Asks a service, and waits for its answer; `batches` are its batch jobs.

    Args:
        url: Of the service.
        key: Of the application.
        timeout: Seconds for a request with its repetitions.
        attempts: At most, where the service is busy, not ready, or out of reach.
    """

    _http: httpx.Client

    def _open(self, **options: Any) -> None:
        self._http = httpx.Client(**options)
        self.batches = Batches(self._request)

    def predict(self, model: str, image: Image, **asked: Any) -> ImageAnswer:
        """Predict one image.

        Args:
            model: Name.
            image: Its file (bytes, path or open file), or its address.
            asked: `top_k`, `threshold`, `version`, `timeout_ms`; and `attributes`, by name, for a
                model that takes them (of several images, a list).

        Raises:
            BadImageError: The image cannot be used.
            RequestRefusedError: The service refuses, or does not answer.
            TypeError: It is no image file, such as a decoded image.
        """
        return self.ask(model, [image], **asked).results[0]

    def predict_many(self, model: str, images: Sequence[Image], **asked: Any) -> list[ImageAnswer]:
        """Predict several images in one request; each has its result, `ok` or `failed`."""
        return self.ask(model, images, **asked).results if _has_images(images) else []

    def ask(self, model: str, images: Sequence[Image], **asked: Any) -> Answer:
        """Predict images and return all that the service says."""
        question = self._question(images, asked)
        return self._answer(self._request("POST", _path(model), **question))

    def models(self) -> list[dict[str, Any]]:
        """Return the models, with what answers for each now."""
        found: list[dict[str, Any]] = self._request("GET", "/v1/models")["models"]
        return found

    def ready(self) -> bool:
        """Whether the service answers for all the models that it keeps."""
        try:
            return self._http.get("/ready").is_success
        except httpx.HTTPError:
            return False

    def _request(self, method: str, path: str, **question: Any) -> Any:
        deadline = time.monotonic() + self._timeout
        for attempt in range(self._attempts):
            try:
                return self._read(self._http.request(method, path, **question))
            except httpx.HTTPError as error:
                refused = _nothing_came(error)
            except RequestRefusedError as error:
                refused = error
            time.sleep(self._wait_before(attempt, refused, deadline))
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Asking):
    """Asks a service without holding up the event loop; else it is as `Client`."""

    _http: httpx.AsyncClient

    def _open(self, **options: Any) -> None:
        self._http = httpx.AsyncClient(**options)
        self.batches = AsyncBatches(self._request)

    async def predict(self, model: str, image: Image, **asked: Any) -> ImageAnswer:
        """Predict one image, as `Client.predict` does."""
        return (await self.ask(model, [image], **asked)).results[0]

    async def predict_many(
        self, model: str, images: Sequence[Image], **asked: Any
    ) -> list[ImageAnswer]:
        """Predict several images in one request, as `Client.predict_many` does."""
        return (await self.ask(model, images, **asked)).results if _has_images(images) else []

    async def ask(self, model: str, images: Sequence[Image], **asked: Any) -> Answer:
        """Predict images and return all that the service says."""
        question = self._question(images, asked)
        return self._answer(await self._request("POST", _path(model), **question))

    async def models(self) -> list[dict[str, Any]]:
        """Return the models, with what answers for each now."""
        found: list[dict[str, Any]] = (await self._request("GET", "/v1/models"))["models"]
        return found

    async def ready(self) -> bool:
        """Whether the service answers for all the models that it keeps."""
        try:
            return (await self._http.get("/ready")).is_success
        except httpx.HTTPError:
            return False

    async def _request(self, method: str, path: str, **question: Any) -> Any:
        deadline = time.monotonic() + self._timeout
        for attempt in range(self._attempts):
            try:
                return self._read(await self._http.request(method, path, **question))
            except httpx.HTTPError as error:
                refused = _nothing_came(error)
            except RequestRefusedError as error:
                refused = error
            await asyncio.sleep(self._wait_before(attempt, refused, deadline))
        raise AssertionError("the last attempt returns or raises")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
