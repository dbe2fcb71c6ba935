"""The service over HTTP: every way to send an image, every refusal, versions that change."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from eagleray.core.errors import Reason
from eagleray.core.types import TOLERANCE
from eagleray.inference.predictor import Predictor
from eagleray.registry.registry import Registry
from eagleray.serve.messages import message
from eagleray.serving.callers.applications import Applications
from eagleray.serving.versions.routes import Routes
from eagleray.tasks.outcome import Outcome
from tests.support.images import encode, photo
from tests.support.models import golden_png
from tests.support.serving import (
    IMAGE,
    PREDICT,
    CallContext,
    RunningApp,
    add_versions,
    grpc_call,
    registry_with,
    with_service,
)

pytestmark = pytest.mark.numerical

JSON, HTML, FORM = (
    {"headers": {"content-type": kind}}
    for kind in ("application/json", "text/html", "multipart/form-data")
)
TEXT = base64.b64encode(IMAGE).decode()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registry_with(tmp_path_factory.mktemp("service"), "digits", versions=2)


@pytest.fixture
def own_registry(tmp_path: Path) -> Registry:
    return registry_with(tmp_path, "digits")


WAYS: dict[str, dict[str, Any]] = {
    "raw": {"content": IMAGE},
    "image": {"content": IMAGE, "headers": {"content-type": "image/png"}},
    "multipart": {"files": {"image": ("a.png", IMAGE, "image/png")}},
    "base64": {"json": {"image": {"base64": TEXT}}},
    "data URL": {"json": {"image": {"base64": f"data:image/png;base64,{TEXT}"}}},
}


def test_every_way_to_send_an_image_gets_the_predictors_result(registry: Registry) -> None:
    package = registry.load(registry.get("digits", version=1))
    options: dict[str, Any] = {"engine": "eager", "num_threads": 1}
    expected = Predictor(package, **options).predict([IMAGE])[0].prediction
    assert expected is not None

    async def test(running: RunningApp) -> None:
        for way in WAYS.values():
            response = (await running.client.post(PREDICT, **way)).json()
            (result,) = response["results"]
            assert result["label"] == expected.label
            assert result["score"] == pytest.approx(expected.score, abs=max(TOLERANCE.values()))
            assert (result["width"], result["height"]) == (40, 40)
            assert result["top"][0]["label"] == expected.label
            assert (response["version"], response["via"]) == (1, "default")
            assert response["contract_digest"] == package.contract.digest
            assert response["package_digest"] == package.digest
            assert response["engine"] in ("eager float32", "eager bfloat16")
            assert response["timings"]["total_ms"] > 0

    with_service(registry, test)


def test_the_accept_header_chooses_between_json_and_a_picture(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        for accept, status in {"image/*": 422, "image/png;q=0.9": 422, "*/*": 200}.items():
            words: dict[str, Any] = {"content": IMAGE, "headers": {"accept": accept}}
            response = await running.client.post(PREDICT, **words)
            assert response.status_code == status, accept
            # A classifier says no places, so that there is nothing to draw.
            assert ("accept application/json" in response.text) == (status == 422)

    with_service(registry, test)


def test_several_images_have_a_result_each_in_order(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        images = [golden_png(1), b"no image", golden_png(2), encode(photo())[:200]]
        files = [("image", (f"{n}.png", content)) for n, content in enumerate(images)]
        by_form = (await running.client.post(PREDICT, files=files)).json()["results"]
        body = {"images": [{"base64": base64.b64encode(item).decode()} for item in images]}
        by_json = (await running.client.post(PREDICT, json=body)).json()["results"]
        for item, other in zip(by_form, by_json, strict=True):
            _require_same(item, other)
        assert [item["status"] for item in by_form] == ["ok", "failed", "ok", "failed"]
        assert [item["reason"] for item in by_form[1::2]] == ["not_an_image", "truncated"]

    with_service(registry, test)


def _require_same(result: dict[str, Any], other: dict[str, Any]) -> None:
    """Scores may differ in the last bits: a forward pass may round by the place in the batch."""
    numbers = {name: result.pop(name, None) for name in ("score", "top")}
    others = {name: other.pop(name, None) for name in ("score", "top")}
    assert result == other
    assert numbers["score"] == pytest.approx(others["score"], abs=max(TOLERANCE.values()))
    for entry, expected in zip(numbers["top"] or (), others["top"] or (), strict=True):
        assert entry["label"] == expected["label"]
        assert entry["score"] == pytest.approx(expected["score"], abs=max(TOLERANCE.values()))


def test_parameters_are_in_the_query_or_the_body(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        query: dict[str, str | int] = {"top_k": 2, "version": "2"}
        response = (await running.client.post(PREDICT, params=query, content=IMAGE)).json()
        assert (response["version"], response["via"]) == (2, "requested")
        assert len(response["results"][0]["top"]) == 2
        body = {"image": {"base64": TEXT}, "top_k": 3, "version": 2, "threshold": 0.99}
        response = (await running.client.post(PREDICT, params=query, json=body)).json()
        assert response["version"] == 2
        assert response["results"][0]["top"] == []

    with_service(registry, test)


REFUSALS: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    (PREDICT, {"content": b""}, 400, "image", "truncated"),
    (PREDICT, {"content": b"no image"}, 400, "image", "not_an_image"),
    (PREDICT, {"content": encode(photo())[:200]}, 400, "image", "truncated"),
    (PREDICT, {"content": b"<svg xmlns='x'/>"}, 415, "image", "unsupported_format"),
    (PREDICT, {"content": b"x" * 2_000_000}, 413, "toolarge", None),
    (PREDICT, {"content": IMAGE, **HTML}, 415, "unsupported", None),
    (PREDICT, {"content": b"{", **JSON}, 400, "input", None),
    (PREDICT, {"json": {"image": {"base64": "?"}}}, 400, "input", None),
    (PREDICT, {"json": {"images": []}}, 400, "input", None),
    (PREDICT, {"json": {"images": [{"base64": ""}] * 5}}, 413, "toolarge", None),
    (PREDICT, {"json": {"image": {}}}, 400, "input", None),
    (PREDICT, {"json": {"image": {"url": "http://127.0.0.1/a.png"}}}, 403, "forbidden", None),
    (PREDICT, {"json": {"image": {"uri": "/etc/passwd"}}}, 403, "forbidden", None),
    (PREDICT, {"content": b"", **FORM}, 400, "input", None),
    (PREDICT + "?top_k=0", {"content": IMAGE}, 422, "parameter", None),
    (PREDICT + "?top_k=many", {"content": IMAGE}, 422, "parameter", None),
    (PREDICT + "?topk=3", {"content": IMAGE}, 422, "parameter", None),
    (PREDICT + "?version=9", {"content": IMAGE}, 404, "unknownversion", None),
    (PREDICT + "?version=stagin", {"content": IMAGE}, 404, "unknownname", None),
    ("/v1/models/digit/predict", {"content": IMAGE}, 404, "unknownname", None),
    ("/v1/nothing", {"content": IMAGE}, 404, "http", None),
    ("/v1/models", {"content": IMAGE}, 405, "http", None),
    (PREDICT + "?timeout_ms=0.001", {"content": IMAGE}, 504, "deadline", None),
]


@pytest.fixture(scope="module")
def refused(registry: Registry) -> list[Any]:
    """Ask all of it of one service."""
    found = []

    async def test(running: RunningApp) -> None:
        for path, body, *_ in REFUSALS:
            found.append(await running.client.post(path, **body))
        good = await running.client.post(PREDICT, content=IMAGE)
        assert good.status_code == 200, good.text

    with_service(registry, test, max_images=4, max_body_mb=1)
    return found


@pytest.mark.parametrize("number", range(len(REFUSALS)))
def test_refusals_are_problem_documents(refused: list[Any], number: int) -> None:
    _, _, status, kind, reason = REFUSALS[number]
    response = refused[number]
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert (response.status_code, problem["type"]) == (status, f"/problems/{kind}"), problem
    assert problem["status"] == status
    assert problem.get("reason") == reason
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text


def test_a_missing_version_is_reported(refused: list[Any]) -> None:
    texts = [response.json()["detail"] for response in refused]
    assert any("has no version 9" in text for text in texts)
    assert any("Nearest: digits" in text for text in texts)


def test_a_promotion_and_a_rollback_reach_the_service_without_restart(
    own_registry: Registry,
) -> None:
    add_versions(own_registry, "digits", 1)

    async def test(running: RunningApp) -> None:
        async def serving() -> int:
            return int((await running.client.post(PREDICT, content=IMAGE)).json()["version"])

        assert await serving() == 1
        for version in (2, 1):
            own_registry.set_alias("digits", "production", version)
            async with asyncio.timeout(20):
                while await serving() != version:
                    await asyncio.sleep(0.01)
        described = (await running.client.get("/v1/models/digits")).json()
        assert described["serving"] == 1
        assert [item["serving"] for item in described["roles"]] == [1]
        labels = (await running.client.get("/v1/models/digits/labels")).json()
        assert (labels["labels"][0], labels["positive"]) == ("zero", None)

    with_service(own_registry, test)


def test_pins_canaries_and_shadows_reach_the_service(own_registry: Registry) -> None:
    add_versions(own_registry, "digits", 2)
    database = own_registry.history.database
    applications = Applications(database, actor="tester")
    shop, web = applications.create("shop").key, applications.create("web").key
    applications.pin("shop", "digits", "2")
    Routes(database, actor="tester").set(
        "digits", canary="3", canary_share=0.5, shadow="2", shadow_share=1.0
    )

    async def test(running: RunningApp) -> None:
        async def version(key: str, request_id: str) -> int:
            headers = {"authorization": f"Bearer {key}", "x-request-id": request_id}
            response = await running.client.post(PREDICT, content=IMAGE, headers=headers)
            assert response.headers["x-request-id"] == request_id
            return int(response.json()["version"])

        assert {await version(shop, f"r{number}") for number in range(20)} == {2}
        mixed = [await version(web, f"r{number}") for number in range(40)]
        assert set(mixed) == {1, 3}
        assert mixed == [await version(web, f"r{number}") for number in range(40)]
        comparisons = running.service.shadows.comparisons
        await running.until(lambda: "digits" in comparisons)
        found = comparisons["digits"]
        await running.until(lambda: found.same + found.different > 0)
        shadow = await running.client.get("/v1/models/digits/shadow", headers={"x-api-key": web})
        assert shadow.json()["same"] + shadow.json()["different"] > 0

    with_service(own_registry, test)


def test_everything_but_liveness_requires_a_key(own_registry: Registry) -> None:
    made = Applications(own_registry.history.database, actor="tester").create("shop")

    async def test(running: RunningApp) -> None:
        paths = running.client._transport.app.openapi()["paths"]  # type: ignore[attr-defined]
        for path, methods in paths.items():
            for method in methods:
                url = path.replace("{name}", "digits").replace("{version}", "1")
                response = await running.client.request(method, url)
                open_to_all = path in ("/live", "/v2/health/live")
                assert response.status_code == (200 if open_to_all else 401), path
        for headers in (
            {"authorization": f"Bearer {made.key}"},
            {"x-api-key": made.key},
            {"authorization": "Basic " + base64.b64encode(f"shop:{made.key}".encode()).decode()},
        ):
            assert (await running.client.get("/v1/models", headers=headers)).status_code == 200
        refused = await running.client.get("/v1/models", headers={"authorization": "Bearer wrong"})
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"

    with_service(own_registry, test, address="192.0.2.7")


def test_without_keys_other_machines_are_refused(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        response = await running.client.post(PREDICT, content=IMAGE)
        assert response.status_code == 401
        assert "eagleray apps create NAME" in response.json()["detail"]

    with_service(registry, test, address="192.0.2.7")


def test_a_quota_that_is_used_up_is_429_with_a_time_to_come_again(own_registry: Registry) -> None:
    made = Applications(own_registry.history.database, actor="tester").create(
        "shop", images_per_second=0.5
    )

    async def test(running: RunningApp) -> None:
        headers = {"authorization": f"Bearer {made.key}"}
        assert (
            await running.client.post(PREDICT, content=IMAGE, headers=headers)
        ).status_code == 200
        response = await running.client.post(PREDICT, content=IMAGE, headers=headers)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1

    with_service(own_registry, test)


class Held:
    """A version that answers when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def decode(self, images: Sequence[Any]) -> Sequence[Any]:
        self.go.wait(20)
        return images

    def predict(self, decoded: Sequence[Any]) -> list[Outcome]:
        return [Outcome.failed(Reason.MISSING, "") for _ in decoded]


def test_a_full_service_refuses_before_it_reads_the_body(registry: Registry) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield IMAGE

    async def test(running: RunningApp) -> None:
        workers, held = running.service.workers, Held()

        async def wait() -> None:
            await workers.predict(held, None, pixels=0, deadline=time.monotonic() + 20)

        waiting = [asyncio.create_task(wait())]
        await running.until(lambda: workers.num_busy == 1)
        waiting.append(asyncio.create_task(wait()))
        await running.until(lambda: workers.num_queued == 1)
        response = await running.client.post(PREDICT, content=body())
        assert (response.status_code, read) == (429, [])
        assert int(response.headers["retry-after"]) >= 1
        assert (await running.client.get("/ready")).status_code == 200
        held.go.set()
        await asyncio.gather(*waiting)
        response = await running.client.post(PREDICT, content=body())
        assert response.status_code == 200
        assert 1 <= int(response.headers["x-eagleray-capacity"]) <= 2

    with_service(registry, test, worker_threads=1, max_queued=1, max_batch_images=1)


def test_health_and_metrics(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        assert (await running.client.get("/live")).json() == {"live": True}
        assert (await running.client.get("/ready")).json() == {"ready": True}
        await running.client.post(PREDICT, content=IMAGE)
        await running.client.post(PREDICT, content=b"no image")
        text = (await running.client.get("/metrics")).text
        labels = 'application="anonymous",model="digits"'
        assert f'eagleray_requests_total{{{labels},status="200",version="1"}} 1.0' in text
        assert f'eagleray_images_total{{{labels},result="not_an_image",version="1"}} 1.0' in text
        assert 'eagleray_stage_seconds_count{model="digits",stage="forward"} 1.0' in text
        # HAProxy says with a request how many it has refused since the last one.
        refused = {"x-eagleray-refused": "40"}
        text = (await running.client.get("/metrics", headers=refused)).text
        assert 'eagleray_rejections_total{kind="full"} 40.0' in text

    with_service(registry, test)


def test_mlflows_interface_takes_each_of_its_forms(registry: Registry) -> None:
    forms: list[dict[str, Any]] = [
        {"inputs": [TEXT]},
        {"instances": [TEXT]},
        {"inputs": {"image": [TEXT]}},
        {"dataframe_split": {"columns": ["image"], "data": [[TEXT]]}},
        {"dataframe_records": [{"image": TEXT}]},
    ]

    async def test(running: RunningApp) -> None:
        responses = [
            (await running.client.post("/invocations", json=form)).json() for form in forms
        ]
        assert all(response == responses[0] for response in responses)
        assert responses[0]["predictions"][0]["status"] == "ok"
        table = {"dataframe_split": {"data": [[1, 2]]}}
        bodies: list[Any] = [[], {}, {"inputs": 3}, {"inputs": [3]}, table]
        for bad in bodies:
            response = await running.client.post("/invocations", content=json.dumps(bad))
            assert response.status_code == 400, bad

    with_service(registry, test)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Return what the log of requests has."""
    caplog.set_level(logging.INFO, "eagleray.access")
    return lambda: [record.__dict__["eagleray_fields"] for record in caplog.records]


@contextlib.asynccontextmanager
async def only_worker_blocked(running: RunningApp) -> AsyncIterator[None]:
    """Block the only worker while the block runs."""
    held, workers = Held(), running.service.workers
    response = workers.predict(held, None, pixels=0, deadline=time.monotonic() + 20)
    task = asyncio.create_task(response)
    await running.until(lambda: workers.num_busy == 1)
    try:
        yield
    finally:
        held.go.set()
        await task


def test_a_caller_that_went_away_is_499_in_log_and_metrics(
    registry: Registry, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    async def test(running: RunningApp) -> None:
        async with only_worker_blocked(running):
            gone = asyncio.create_task(running.client.post(PREDICT, content=IMAGE))
            await running.until(lambda: running.service.workers.num_queued == 1)
            gone.cancel()  # as the server does with a request whose connection ends
            with pytest.raises(asyncio.CancelledError):
                await gone
        assert [(line["status"], line["model"]) for line in lines()] == [(499, "digits")]
        text = (await running.client.get("/metrics")).text
        labels = 'application="anonymous",model="digits",status="499",version=""'
        assert f"eagleray_requests_total{{{labels}}} 1.0" in text

    with_service(registry, test, worker_threads=1)


def test_a_grpc_caller_that_went_away_is_cancelled_in_log_and_metrics(
    registry: Registry, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    request = message("ModelInferRequest")(
        model_name="digits", inputs=[{**tensor, "contents": {"bytes_contents": [IMAGE]}}]
    )

    async def test(running: RunningApp) -> None:
        call = functools.partial(grpc_call, running.service)
        async with only_worker_blocked(running):
            gone = asyncio.create_task(call("ModelInfer", request, CallContext()))
            await running.until(lambda: running.service.workers.num_queued == 1)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
        await call("ModelInfer", request, CallContext())
        assert [(line["status"], line["version"]) for line in lines()] == [
            ("CANCELLED", ""),
            ("OK", "1"),
        ]
        text = (await running.client.get("/metrics")).text
        for status, version in (("CANCELLED", ""), ("OK", "1")):
            labels = f'application="anonymous",model="digits",status="{status}",version="{version}"'
            assert f"eagleray_requests_total{{{labels}}} 1.0" in text

    with_service(registry, test, worker_threads=1)


def test_every_get_route_serves_head(
    registry: Registry, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    async def test(running: RunningApp) -> None:
        paths = running.client._transport.app.openapi()["paths"]  # type: ignore[attr-defined]
        known = [path for path, methods in paths.items() if "get" in methods]
        for path in ["/", "/docs", "/openapi.json", *known]:
            url = re.sub(r"\{.*?\}", "1", path.replace("{name}", "digits"))
            get, head = [await running.client.request(method, url) for method in ("GET", "HEAD")]
            assert (head.status_code, head.content) == (get.status_code, b""), path
            assert head.headers["content-type"] == get.headers["content-type"], path
            assert "content-length" in head.headers, path
        assert {line["method"] for line in lines()} == {"GET", "HEAD"}

    with_service(registry, test)


ALLOWED = {
    "/live": "GET, HEAD, OPTIONS",
    PREDICT: "POST, OPTIONS",
    "/v1/models/digits": "GET, HEAD, OPTIONS",
    "/v1/batches": "GET, POST, HEAD, OPTIONS",
    "/v1/batches/1": "GET, DELETE, HEAD, OPTIONS",
    "/v2/models/digits/infer": "POST, OPTIONS",
}


def test_other_methods_get_the_allowed_ones(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        for path, methods in ALLOWED.items():
            options = await running.client.options(path)
            assert (options.status_code, options.content) == (204, b"")
            assert options.headers.get_list("allow") == [methods]
            refused = await running.client.request("PATCH", path)
            assert (refused.status_code, refused.headers["allow"]) == (405, methods)
            assert refused.json()["detail"] == f"{path} supports {methods}, not PATCH."
        assert (await running.client.options("/v1/nothing")).status_code == 404
        assert (await running.client.head(PREDICT)).headers["allow"] == "POST, OPTIONS"

    with_service(registry, test)


def test_slashes_too_many_change_nothing(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        for path in (f"{PREDICT}/", "/v1//models/digits//predict", "/v2/models/digits/infer//"):
            response = await running.client.post(path, content=IMAGE)
            if path.startswith("/v2"):
                assert (response.status_code, response.json()["type"]) == (400, "/problems/input")
            else:
                assert response.json()["results"][0]["status"] == "ok"
            assert "x-eagleray-capacity" in response.headers
        assert (await running.client.get("/ready/")).json() == {"ready": True}
        listed = await running.client.get("/v1/models/")
        assert (listed.status_code, listed.json()["models"][0]["name"]) == (200, "digits")

    with_service(registry, test)


def test_slashes_too_many_lead_nowhere_without_a_key(own_registry: Registry) -> None:
    Applications(own_registry.history.database, actor="tester").create("shop")

    async def test(running: RunningApp) -> None:
        for path in ("/live/v1/models", "/v1/models/", "//v1//models", "/live//../v1/models"):
            response = await running.client.get(f"http://localhost{path}")
            assert response.status_code == 401, path
        assert (await running.client.get("/live/")).status_code == 200

    with_service(own_registry, test, address="192.0.2.7")


def test_a_response_has_its_id_once(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        for path in ("/v1/models", "/v1/nothing"):
            given = await running.client.get(path, headers={"x-request-id": "mine"})
            assert given.headers.get_list("x-request-id") == ["mine"]
            (made,) = (await running.client.get(path)).headers.get_list("x-request-id")
            assert len(made) >= 32

    with_service(registry, test)
