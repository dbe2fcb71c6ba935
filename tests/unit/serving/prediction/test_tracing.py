"""Traces: a span for a request and for each of its stages, as a real collector gets them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.settings import Settings, read_settings
from eagleray.registry.registry import Registry
from eagleray.serve.messages import message
from eagleray.serving.prediction.tracing import NO_TRACE, Tracing, open_tracing
from tests.support.models import golden_png
from tests.support.otlp import ERROR, SERVER, Collector, SeenSpan, running_collector
from tests.support.serving import (
    IMAGE,
    PREDICT,
    CallContext,
    RunningApp,
    grpc_call,
    registry_with,
    with_service,
)

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "r-1"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def registry(files: Path) -> Registry:
    return registry_with(files, "digits", versions=2)


@pytest.fixture
def collector(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with running_collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url + "/")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-models")
        monkeypatch.setattr(registry, "settings", Settings(home=registry.settings.home))
        yield found


def check_inside(child: SeenSpan, parent: SeenSpan) -> None:
    assert (child.trace, child.parent) == (parent.trace, parent.id)
    assert parent.began <= child.began <= child.ended <= parent.ended


def test_a_request_is_a_span_of_its_callers_trace_with_its_stages(
    registry: Registry, collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    responses: list[dict[str, Any]] = []

    async def test(running: RunningApp) -> None:
        response = await running.client.post(PREDICT, content=IMAGE, headers=PARENT)
        responses.append(response.json())
        assert response.headers["x-request-id"] == "r-1"
        for path in ("/live", "/ready", "/metrics", "/v2/health/ready"):
            await running.client.get(path)

    with_service(registry, test)  # at its end everything is sent
    (root,) = [span for span in collector.spans if span.kind == SERVER]
    assert (root.trace, root.parent) == (TRACE, CALLER)
    assert root.name == "POST /v1/models/{name}/predict"
    assert collector.paths == {"/v1/traces"}
    assert root.resource["service.name"] == "shop-models"
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/models/{name}/predict",
        "http.response.status_code": 200,
        "url.path": PREDICT,
        "url.scheme": "http",
        "eagleray.model": "digits",
        "eagleray.version": 1,
        "eagleray.via": "default",
        "eagleray.application": "",
        "eagleray.request_id": "r-1",
    }
    assert expected.items() <= root.attributes.items()
    assert root.status != ERROR
    spans = collector.of(TRACE)
    stages = [spans[name] for name in ("queue", "decode", "forward")]
    assert len(collector.spans) == 4
    for stage in stages:
        check_inside(stage, root)
    queue, decode, forward = stages
    assert queue.ended == decode.began
    assert decode.ended <= forward.began + 1000  # rounding of seconds to nanoseconds
    timings = responses[0]["timings"]
    for name, stage in zip(("queue", "decode", "forward"), stages, strict=True):
        took = (stage.ended - stage.began) / 1e6
        assert took == pytest.approx(timings[f"{name}_ms"], abs=0.002)


def test_each_image_has_its_stages_and_its_error(
    registry: Registry, collector: Collector, files: Path
) -> None:
    good, lost = files / "a.png", files / "lost.png"
    good.write_bytes(golden_png(1))
    whole = golden_png(2)
    broken = files / "broken.png"
    broken.write_bytes(whole[: len(whole) // 2])

    async def test(running: RunningApp) -> None:
        body = {"images": [{"uri": str(item)} for item in (good, lost, broken)]}
        response = await running.client.post(PREDICT, json=body, headers=PARENT)
        assert [item["status"] for item in response.json()["results"]] == ["ok", "failed", "failed"]

    with_service(registry, test, allow_storage=(str(files),))
    found = {
        (span.name, span.attributes["eagleray.image"]): span
        for span in collector.spans
        if "eagleray.image" in span.attributes
    }
    assert {name for name, image in found if image == 0} == {"fetch", "queue", "decode", "forward"}
    assert {name for name, image in found if image == 1} == {"fetch"}
    assert (found["fetch", 1].status, found["decode", 2].status) == (ERROR, ERROR)
    assert found["decode", 2].attributes["error.type"] == "truncated"
    assert found["fetch", 0].status != ERROR
    (root,) = [span for span in collector.spans if span.kind == SERVER]
    for span in found.values():
        check_inside(span, root)


@pytest.mark.parametrize(
    ("path", "headers", "status", "error"),
    [
        ("/v1/models/no/predict", {}, 404, None),
        ("/v1/models/digits/predict?timeout_ms=0.000001", {}, 504, "504"),
    ],
)
def test_only_faults_of_the_service_are_errors_of_its_span(
    registry: Registry,
    collector: Collector,
    path: str,
    headers: dict[str, str],
    status: int,
    error: str | None,
) -> None:
    async def test(running: RunningApp) -> None:
        response = await running.client.post(path, content=IMAGE, headers=headers)
        assert response.status_code == status

    with_service(registry, test)
    (root,) = [span for span in collector.spans if span.kind == SERVER]
    assert root.parent == ""
    assert root.attributes["http.response.status_code"] == status
    assert root.attributes.get("error.type") == error
    assert (root.status == ERROR) == (error is not None)


def test_the_trace_stands_in_the_log(
    registry: Registry, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(running: RunningApp) -> None:
        with caplog.at_level("INFO", logger="eagleray.access"):
            await running.client.post(PREDICT, content=IMAGE, headers=PARENT)

    with_service(registry, test)
    (line,) = [vars(item)["eagleray_fields"] for item in caplog.records if "access" in item.name]
    assert (line["trace_id"], line["request_id"]) == (TRACE, "r-1")


def test_a_caller_that_does_not_sample_is_obeyed(registry: Registry, collector: Collector) -> None:
    async def test(running: RunningApp) -> None:
        unsampled = {"traceparent": PARENT["traceparent"][:-2] + "00"}
        response = await running.client.post(PREDICT, content=IMAGE, headers=unsampled)
        assert response.status_code == 200

    with_service(registry, test)
    assert collector.spans == []


def test_without_a_collector_there_is_one_object_and_no_import(tmp_path: Path) -> None:
    tracing = open_tracing(Settings(home=tmp_path))
    assert type(tracing) is Tracing
    assert tracing.begin(PARENT) is NO_TRACE
    assert not NO_TRACE.is_recording
    code = (
        "import sys; from eagleray.core.settings import *; "
        "from eagleray.serving.prediction.tracing import *; "
        "open_tracing(Settings()).begin({}); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unreachable_collector_delays_no_request(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        registry,
        "settings",
        Settings(home=registry.settings.home, otlp_endpoint="http://127.0.0.1:9"),
    )

    async def test(running: RunningApp) -> None:
        response = await running.client.post(PREDICT, content=IMAGE, headers=PARENT)
        assert response.status_code == 200

    with_service(registry, test)


@pytest.mark.parametrize("name", ["EAGLERAY_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "collector:4317")
    with pytest.raises(InputError, match="OTLP_ENDPOINT: 'collector:4317' must start with http"):
        read_settings()


def test_a_grpc_call_is_a_span_too(registry: Registry, collector: Collector) -> None:
    request = message("ModelInferRequest")(
        model_name="digits",
        inputs=[{"name": "image", "datatype": "BYTES", "shape": [1]}],
        raw_input_contents=[len(IMAGE).to_bytes(4, "little") + IMAGE],
    )

    async def test(running: RunningApp) -> None:
        response = await grpc_call(
            running.service, "ModelInfer", request, CallContext(traceparent=PARENT["traceparent"])
        )
        assert response.model_version == "1"
        unknown = message("ModelReadyRequest")(name="no")
        with pytest.raises(UnknownNameError):
            await grpc_call(running.service, "ModelReady", unknown, CallContext())

    with_service(registry, test)
    spans = collector.of(TRACE)
    root = spans.pop("inference.GRPCInferenceService/ModelInfer")
    assert (root.kind, root.parent) == (SERVER, CALLER)
    assert root.attributes["rpc.system.name"] == "grpc"
    assert root.attributes["rpc.response.status_code"] == "OK"
    assert root.attributes["eagleray.version"] == 1
    assert set(spans) == {"queue", "decode", "forward"}
    for span in spans.values():
        check_inside(span, root)
    (other,) = [span for span in collector.spans if span.name.endswith("ModelReady")]
    assert other.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert other.status != ERROR
