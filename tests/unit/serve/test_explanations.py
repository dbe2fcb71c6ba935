"""Explanations over HTTP: an overlay beside the prediction, one at a time, or a refusal."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eagleray.imaging import decode
from eagleray.inference.explain import Explainer, Explanation
from eagleray.registry.registry import Registry
from eagleray.reports.overlays import overlay
from eagleray.tasks import Regression
from tests.support.models import CONTRACT, golden_png, lenet, lenet_module, small_package
from tests.support.serving import IMAGE, PREDICT, RunningApp, registry_with, with_service

EXPLAIN = f"{PREDICT}?explain=true"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = registry_with(tmp_path_factory.mktemp("explanations"), "digits")
    ages = small_package(
        name="ages",
        task=Regression(mean=0.0, std=1.0),
        architecture=lenet(1),
        module=lenet_module(1),
        golden_images=[golden_png(0)],
    )
    registry.register(ages)
    registry.set_alias("ages", "production", 1)
    return registry


def picture(explanation: dict[str, Any]) -> np.ndarray:
    assert explanation["media_type"] == "image/png"
    opened = Image.open(io.BytesIO(base64.b64decode(explanation["image"])))
    assert opened.format == "PNG"
    return np.asarray(opened)


def test_an_explanation_is_the_overlay_of_the_predicted_label(registry: Registry) -> None:
    async def test(app: RunningApp) -> None:
        plain = (await app.client.post(PREDICT, content=IMAGE)).json()["results"][0]
        assert "explanation" not in plain
        for request in (
            {"url": EXPLAIN, "content": IMAGE},
            {"url": PREDICT, "json": {"image": base64.b64encode(IMAGE).decode(), "explain": True}},
            {"url": EXPLAIN, "files": {"image": IMAGE}},
        ):
            response = await app.client.post(**request)
            assert response.status_code == 200, response.text
            (result,) = response.json()["results"]
            explanation = result.pop("explanation")
            assert result["label"] == plain["label"] == explanation["label"]
            assert result["score"] == pytest.approx(plain["score"], abs=1e-5)
            decoded = decode(IMAGE, CONTRACT)
            package = app.service.registry.load(app.service.registry.get("digits", version=1))
            found = Explainer(package).explain(decoded, plain["label"])
            whole = np.asarray(Image.open(io.BytesIO(IMAGE)))[..., None]
            expected = overlay(whole, found.heat, found.frame)
            assert picture(explanation).shape == (40, 40, 3)
            assert np.abs(picture(explanation).astype(int) - expected).max() <= 2

    with_service(registry, test)


@pytest.mark.parametrize(
    ("url", "body", "status", "detail"),
    [
        (EXPLAIN, {"images": 2}, 400, "explain is for one image, and the request has 2"),
        (EXPLAIN, {"image": b"not an image"}, 400, "not an image"),
        ("/v1/models/ages/predict?explain=true", {}, 400, "regression model predicts no label"),
        (f"{PREDICT}?explain=maybe", {}, 422, "Parameter explain must be a valid boolean"),
        (f"{PREDICT}?limit=cat", {}, 422, "Parameter limit: 'cat' is not a limit such as"),
        ("/invocations", {}, 400, "explain is a parameter of /v1/models/NAME/predict alone"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    registry: Registry, url: str, body: dict[str, Any], status: int, detail: str
) -> None:
    text = base64.b64encode(body.get("image", IMAGE)).decode()

    async def test(app: RunningApp) -> None:
        if url == "/invocations":
            invocation = {"inputs": [text], "params": {"explain": True}}
            response = await app.client.post("/v1/models/digits/invocations", json=invocation)
        elif "images" in body:
            response = await app.client.post(url, json={"images": [text, text]})
        else:
            response = await app.client.post(url, content=body.get("image", IMAGE))
        assert response.status_code == status, response.text
        assert detail in response.json()["detail"]
        again = await app.client.post(EXPLAIN, content=IMAGE)  # the turn is free again
        assert again.status_code == 200, again.text

    with_service(registry, test)


def test_a_second_explanation_is_refused_while_predictions_go_on(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end = threading.Event(), threading.Event()
    explain = Explainer.explain

    def slow(self: Explainer, *arguments: Any) -> Explanation:
        began.set()
        may_end.wait(20)
        return explain(self, *arguments)

    monkeypatch.setattr(Explainer, "explain", slow)

    async def test(app: RunningApp) -> None:
        first = asyncio.ensure_future(app.client.post(EXPLAIN, content=IMAGE))
        await app.until(began.is_set)
        refused = await app.client.post(EXPLAIN, content=IMAGE)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "explains one prediction at a time" in refused.json()["detail"]
        assert (await app.client.post(PREDICT, content=IMAGE)).status_code == 200
        may_end.set()
        assert (await first).status_code == 200
        assert (await app.client.post(EXPLAIN, content=IMAGE)).status_code == 200

    with_service(registry, test)


def test_an_explanation_that_its_caller_gave_up_keeps_the_turn_until_it_ends(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    explain = Explainer.explain

    def slow(self: Explainer, *arguments: Any) -> Explanation:
        may_end.wait(20)
        return explain(self, *arguments)

    monkeypatch.setattr(Explainer, "explain", slow)

    async def test(app: RunningApp) -> None:
        late = await app.client.post(f"{EXPLAIN}&timeout_ms=3000", content=IMAGE)
        assert late.status_code == 504
        assert "before the prediction was explained" in late.json()["detail"]
        assert (await app.client.post(EXPLAIN, content=IMAGE)).status_code == 429
        may_end.set()
        status = 429
        async with asyncio.timeout(20):
            while status == 429:
                status = (await app.client.post(EXPLAIN, content=IMAGE)).status_code
        assert status == 200

    with_service(registry, test)


def test_the_document_describes_explanations(registry: Registry) -> None:
    async def test(app: RunningApp) -> None:
        document = (await app.client.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        assert set(schemas["ImageExplanation"]["properties"]) == {"label", "media_type", "image"}
        operation = document["paths"]["/v1/models/{name}/predict"]["post"]
        assert "explain" in json.dumps(operation["parameters"])

    with_service(registry, test)


def test_the_page_has_a_button_that_explains(registry: Registry) -> None:
    async def test(app: RunningApp) -> None:
        page = (await app.client.get("/")).text
        assert 'id="explain"' in page


def test_the_code_on_the_page_reads_what_the_model_predicts(registry: Registry) -> None:
    async def test(app: RunningApp) -> None:
        page = (await app.client.get("/")).text
        assert '<option value="digits" data-member="label">' in page
        assert '<option value="ages" data-member="value" selected>' in page
        assert "${more}).${member}`" in page

    with_service(registry, test)
