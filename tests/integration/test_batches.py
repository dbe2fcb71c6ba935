"""Batch jobs through the running service: started, watched, compared, cancelled, gone on with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from eagleray import Client
from eagleray.core.errors import JobFailedError
from eagleray.core.types import TOLERANCE
from eagleray.serving.callers.applications import Applications
from tests.support.models import golden_png
from tests.support.service import running_service
from tests.support.serving import registry_with

NUM_IMAGES = 30
PATH = "/v1/batches"

pytestmark = pytest.mark.long


@dataclass
class Place:
    """A home with a model and two callers, and folders for images and results."""

    folder: Path
    keys: dict[str, str]

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    def output(self, application: str, name: str) -> str:
        return str(self.folder / "results" / application / name)

    def asked(self, application: str, name: str, **fields: Any) -> dict[str, Any]:
        body = {"inputs": str(self.photos), "output": self.output(application, name)}
        return {**body, "model": "digits", **fields}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("batches")
    registry = registry_with(folder, "digits", versions=2)
    (folder / "photos").mkdir()
    for number in range(NUM_IMAGES):
        (folder / "photos" / f"{number:03d}.png").write_bytes(golden_png(number))
    (folder / "photos" / "bad.png").write_bytes(b"no image")
    applications = Applications(registry.history.database, actor="tester")
    return Place(folder, {name: applications.create(name).key for name in ("shop", "bakery")})


class Service:
    """The service as its command starts it, and its callers."""

    def __init__(self, place: Place) -> None:
        self._place, self._open = place, ExitStack()
        words = ["digits", "--engine", "eager", "--batch-inputs", str(place.photos)]
        words += ["--batch-outputs", str(place.folder / "results" / "{application}")]
        running = self._open.enter_context(running_service(place.folder / "home", *words))
        self.url = running.url

    def of(self, application: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {self._place.keys[application]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def end(self) -> None:
        self._open.close()


@pytest.fixture(scope="module")
def service(place: Place) -> Iterator[Service]:
    started = Service(place)
    yield started
    started.end()


def until(look: Callable[[], Any], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def ended(client: httpx.Client, batch: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        status: dict[str, Any] = client.get(f"{PATH}/{batch}").json()
        return status if status["state"] not in ("queued", "running") else None

    found: dict[str, Any] = until(look)
    return found


def accepted(answer: httpx.Response) -> Any:
    """Return a batch, or None while its last attempt is still ending."""
    if answer.status_code == 503:
        return None
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_a_batch_predicts_what_the_service_predicts(place: Place, service: Service) -> None:
    with service.of("shop") as shop, service.of("bakery") as bakery:
        asked = place.asked("shop", "first", format="jsonl", top_k=2)
        began = shop.post(PATH, json=asked)
        assert began.status_code == 202, began.text
        batch = began.json()["id"]
        assert began.headers["location"] == f"{PATH}/{batch}"
        assert shop.post(PATH, json=asked).json()["id"] == batch  # the same words, the same batch
        assert shop.get(f"{PATH}/{batch}/results").status_code == 409

        status = ended(shop, batch)
        assert status["state"] == "succeeded", status
        assert (status["total"], status["done"], status["failed"]) == (31, 31, 1)
        assert status["model"] == "digits/1"

        results = shop.get(f"{PATH}/{batch}/results").json()
        assert (results["rows"], results["ok"], results["failed"]) == (31, 30, 1)
        assert results["reasons"] == {"not_an_image": 1}
        assert Path(results["files"][0]["location"]).is_file()

        lines = shop.get(f"{PATH}/{batch}/results", params={"format": "jsonl", "offset": 5})
        rows = [json.loads(line) for line in lines.text.splitlines()]
        assert [row["row"] for row in rows] == list(range(5, 31))
        for row in rows[:8]:
            image = Path(row["uri"]).read_bytes()
            answer = shop.post("/v1/models/digits/predict", content=image).json()["results"][0]
            assert row["label"] == answer["label"]
            assert row["score"] == pytest.approx(answer["score"], abs=max(TOLERANCE.values()))

        page = shop.get(f"{PATH}/{batch}/report")
        assert "text/html" in page.headers["content-type"]
        assert "not_an_image" in page.text

        assert shop.get(PATH).json()["batches"][0]["id"] == batch
        assert bakery.get(PATH).json() == {"batches": []}
        for path in ("", "/results", "/report"):
            assert bakery.get(f"{PATH}/{batch}{path}").status_code == 404
        assert bakery.delete(f"{PATH}/{batch}").status_code == 404
        assert httpx.get(f"{service.url}{PATH}").status_code == 401


def test_a_batch_is_cancelled_gone_on_with_and_outlives_the_service(
    place: Place, service: Service
) -> None:
    asked = place.asked("shop", "second")
    with service.of("shop") as shop:
        began = [shop.post(PATH, json=place.asked("shop", name)) for name in ("second", "third")]
        second, third = (answer.json()["id"] for answer in began)
        until(lambda: shop.get(f"{PATH}/{second}").json()["state"] == "running")
        assert shop.get(f"{PATH}/{third}").json()["state"] == "queued"  # one at a time
        assert shop.delete(f"{PATH}/{third}").json()["state"] == "cancelled"
        cancelled = shop.delete(f"{PATH}/{second}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
        assert not (Path(asked["output"]) / "_manifest.json").exists()

        began_again = until(lambda: accepted(shop.post(PATH, json=asked)))
        assert began_again["id"] == second
        until(lambda: shop.get(f"{PATH}/{second}").json()["state"] == "running")
    service.end()

    another = Service(place)
    try:
        with Client(another.url, key=place.keys["shop"]) as client:
            until(lambda: client.batches.status(second).state == "lost")
            assert "Post the same body again" in client.batches.status(second).message
            again = client.batches.start(asked["inputs"], asked["output"], asked["model"])
            assert again.id == second
            done = client.batches.wait(second, timeout=300)
            assert (done.total, done.failed) == (31, 1)
            assert [row["row"] for row in client.batches.rows(second)] == list(range(31))
            with pytest.raises(JobFailedError, match="cancelled"):
                client.batches.wait(third)
    finally:
        another.end()
