"""The service as it is started by its command: Ray Serve, HTTP, gRPC, independent clients."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from eagleray import AsyncClient, BadImageError, Client, RequestRefusedError
from eagleray.core.types import TOLERANCE
from eagleray.imaging import decode
from eagleray.inference.predictor import Predictor
from eagleray.models.package import ModelPackage
from eagleray.registry.registry import Registry
from eagleray.tasks.outcome import Prediction
from tests.support.images import encode
from tests.support.models import golden_png
from tests.support.otlp import SERVER, Collector, running_collector
from tests.support.service import RunningService, running_service, until
from tests.support.serving import registry_with

IMAGES = [golden_png(seed) for seed in range(6)]
SAME = max(TOLERANCE.values())


@dataclass(frozen=True)
class Running(RunningService):
    home: Path
    config: Path
    registry: Registry
    collector: Collector


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    registry = registry_with(folder, "digits", versions=2)
    config = folder / "service.yaml"
    config.write_text("max_images: 64\n")
    words = ["digits", "--config", str(config), "--engine", "eager", "--poll-interval-s", "0.2"]
    with running_collector() as collector:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        with running_service(folder / "home", *words, **traced) as running:
            yield Running(
                **vars(running),
                home=folder / "home",
                config=config,
                registry=registry,
                collector=collector,
            )


@pytest.fixture(scope="module")
def package(service: Running) -> ModelPackage:
    return service.registry.load(service.registry.get("digits", version=1))


@pytest.fixture(scope="module")
def expected(package: ModelPackage) -> list[Prediction]:
    outcomes = Predictor(package, engine="eager").predict(IMAGES)
    return [outcome.prediction for outcome in outcomes if outcome.prediction is not None]


def test_a_request_is_logged_as_soon_as_it_has_ended(service: Running) -> None:
    marked = {"x-request-id": "look-for-me"}
    response = httpx.post(
        service.url + "/v1/models/digits/predict", content=IMAGES[0], headers=marked
    )
    assert response.status_code == 200
    line = line_of(service, "look-for-me")
    assert (line["kind"], line["status"], line["model"]) == ("access", 200, "digits")
    events = [(line["kind"], line.get("event")) for line in logged(service)]
    assert ("event", "loaded") in events


def logged(service: Running) -> list[dict[str, Any]]:
    logs = (service.home / "logs/serve").glob("replica-*.jsonl")
    return [json.loads(line) for path in logs for line in path.read_text().splitlines()]


def line_of(service: Running, request_id: str) -> dict[str, Any]:
    """Wait for the line of a request in the log."""
    deadline = time.monotonic() + 10
    while True:
        found = [line for line in logged(service) if line.get("request_id") == request_id]
        if found:
            return found[0]
        assert time.monotonic() < deadline, "the line does not come"
        time.sleep(0.05)


def wait_until_busy(service: Running) -> None:
    deadline = time.monotonic() + 20
    while "eagleray_busy_images 0.0" in httpx.get(service.url + "/metrics").text:
        assert time.monotonic() < deadline, "the images do not come"


def test_callers_that_go_away_are_499_and_cancelled(service: Running) -> None:
    large = encode(np.zeros((6000, 6000), np.uint8), "PNG")  # each takes a batch of its own
    head = b"content-disposition: form-data; name=image; filename=a\r\n\r\n"
    body = b"".join(b"--b\r\n" + head + large + b"\r\n" for _ in range(16)) + b"--b--\r\n"
    address = httpx.URL(service.url)
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall(
            b"POST /v1/models/digits/predict HTTP/1.1\r\nhost: localhost\r\n"
            b"x-request-id: gone-http\r\n"
            b"content-type: multipart/form-data; boundary=b\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        connection.sendall(body)
        wait_until_busy(service)
    assert line_of(service, "gone-http")["status"] == 499
    tensor = tritonclient.grpc.InferInput("image", [16], "BYTES")
    tensor.set_data_from_numpy(np.asarray([large] * 16, dtype=object))
    while "eagleray_busy_images 0.0" not in httpx.get(service.url + "/metrics").text:
        time.sleep(0.05)
    with tritonclient.grpc.InferenceServerClient(service.grpc) as client:
        call = client.async_infer(
            "digits", [tensor], lambda *_: None, headers={"x-request-id": "gone-grpc"}
        )
        wait_until_busy(service)
        call.cancel()
        assert line_of(service, "gone-grpc")["status"] == "CANCELLED"


def test_a_response_has_its_id_once_and_head_is_served(service: Running) -> None:
    for path in ("/v1/models", "/v1/nothing", "/live"):
        for given in ("mine", "no id; as it has spaces", None):
            headers = {} if given is None else {"x-request-id": given}
            for ask in (httpx.get, httpx.head):
                response = ask(service.url + path, headers=headers)
                (found,) = response.headers.get_list("x-request-id")
                assert found == "mine" if given == "mine" else len(found) >= 32
    assert httpx.head(service.url + "/ready").content == b""


def test_the_clients_get_the_predictors_results(
    service: Running, expected: list[Prediction], tmp_path: Path
) -> None:
    response = httpx.post(service.url + "/v1/models/digits/predict", content=IMAGES[0])
    assert response.status_code == 200
    assert "x-eagleray-capacity" not in response.headers  # it is for HAProxy, which takes it away
    with Client(service.url) as client:
        assert client.ready()
        assert [model["serving"] for model in client.models()] == [1]
        many = client.predict_many("digits", [*IMAGES, b"no image"])
        (tmp_path / "a.png").write_bytes(IMAGES[0])
        one = client.predict("digits", tmp_path / "a.png", top_k=1)
        with pytest.raises(BadImageError, match="not_an_image"):
            client.predict("digits", b"no image")
        with pytest.raises(RequestRefusedError, match="Nearest: digits") as refused:
            client.predict("digit", IMAGES[0])
        assert refused.value.status == 404
    assert [item.label for item in many] == [item.label for item in expected] + [None]
    assert many[-1].reason == "not_an_image"
    assert (one.label, len(one.top)) == (expected[0].label, 1)
    for item, prediction in zip(many, expected, strict=False):
        assert item.score == pytest.approx(prediction.score, abs=SAME)

    async def ask() -> list[str | None]:
        async with AsyncClient(service.url) as client:
            responses = await asyncio.gather(*(client.predict("digits", item) for item in IMAGES))
            return [response.label for response in responses]

    assert asyncio.run(ask()) == [item.label for item in expected]


def encoded(module: Any) -> Any:
    tensor = module.InferInput("image", [len(IMAGES)], "BYTES")
    return tensor, np.asarray(IMAGES, dtype=object)


def decoded(module: Any, package: ModelPackage) -> Any:
    pixels = np.stack([decode(image, package.contract).pixels for image in IMAGES])
    return module.InferInput("pixels", list(pixels.shape), "UINT8"), pixels


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("kind", ["image", "pixels"])
def test_tritons_http_client_works_unchanged(
    service: Running, package: ModelPackage, expected: list[Prediction], kind: str, binary: bool
) -> None:
    module = tritonclient.http
    with module.InferenceServerClient(service.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        assert client.is_model_ready("digits", "2")
        assert not client.is_model_ready("digit")
        assert client.get_server_metadata()["name"] == "eagleray"
        described = client.get_model_metadata("digits")
        assert described["versions"] == ["1", "2"]
        assert [item["name"] for item in described["inputs"]] == ["image", "pixels"]
        tensor, values = encoded(module) if kind == "image" else decoded(module, package)
        if kind == "image" and not binary:  # JSON has no bytes: an image is text in base64
            values = np.asarray([base64.b64encode(image) for image in IMAGES], dtype=object)
        tensor.set_data_from_numpy(values, binary_data=binary)
        outputs = [
            module.InferRequestedOutput("label", binary_data=binary),
            module.InferRequestedOutput("probabilities", binary_data=binary),
        ]
        response = client.infer("digits", [tensor], outputs=outputs)
        as_classes = module.InferRequestedOutput("probabilities", class_count=2)
        classes = client.infer("digits", [tensor], outputs=[as_classes])
        check(response, classes, expected)
        with pytest.raises(InferenceServerException, match="no version 9"):
            client.infer("digits", [tensor], model_version="9")


@pytest.mark.parametrize("kind", ["image", "pixels"])
def test_tritons_grpc_client_works_unchanged(
    service: Running, package: ModelPackage, expected: list[Prediction], kind: str
) -> None:
    module = tritonclient.grpc
    with module.InferenceServerClient(service.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        assert client.get_server_metadata().name == "eagleray"
        described = client.get_model_metadata("digits")
        assert [item.name for item in described.outputs] == [
            "status",
            "label",
            "score",
            "probabilities",
        ]
        tensor, values = encoded(module) if kind == "image" else decoded(module, package)
        tensor.set_data_from_numpy(values)
        response = client.infer("digits", [tensor])
        as_classes = module.InferRequestedOutput("probabilities", class_count=2)
        classes = client.infer("digits", [tensor], outputs=[as_classes])
        check(response, classes, expected)
        with pytest.raises(InferenceServerException, match="Nearest: digits") as refused:
            client.infer("digit", [tensor])
        assert "NOT_FOUND" in str(refused.value.status())
        bad = module.InferInput("image", [1], "BYTES")
        bad.set_data_from_numpy(np.asarray([b"no image"], dtype=object))
        with pytest.raises(InferenceServerException, match="not_an_image"):
            client.infer("digits", [bad])


def text(element: Any) -> str:
    return element.decode() if isinstance(element, bytes) else str(element)


def check(response: Any, classes: Any, expected: list[Prediction]) -> None:
    labels = [text(label) for label in response.as_numpy("label")]
    assert labels == [item.label for item in expected]
    given = np.stack([item.probabilities for item in expected])
    np.testing.assert_allclose(response.as_numpy("probabilities"), given, atol=SAME)
    best = [text(row[0]).split(":")[2] for row in classes.as_numpy("probabilities")]
    assert best == labels


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_a_collector_gets_the_trace_of_a_request(service: Running, way: str) -> None:
    caller = "b7ad6b7169203331"
    trace = os.urandom(16).hex()
    headers = {"traceparent": f"00-{trace}-{caller}-01", "x-request-id": f"r-{way}"}
    if way == "http":
        path = "/v1/models/digits/predict"
        httpx.post(service.url + path, content=IMAGES[0], headers=headers).raise_for_status()
        name = "POST /v1/models/{name}/predict"
        status: tuple[str, object] = ("http.response.status_code", 200)
    else:
        tensor = tritonclient.grpc.InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.asarray(IMAGES[:1], dtype=object))
        with tritonclient.grpc.InferenceServerClient(service.grpc) as client:
            client.infer("digits", [tensor], headers=headers)
        name = "inference.GRPCInferenceService/ModelInfer"
        status = ("rpc.response.status_code", "OK")
    stages = {"queue", "decode", "forward"}
    service.collector.wait_for(lambda: {name, *stages} <= set(service.collector.of(trace)))
    spans = service.collector.of(trace)
    root = spans.pop(name)
    assert (root.kind, root.parent) == (SERVER, caller)
    assert (root.attributes[status[0]], root.resource["service.name"]) == (status[1], "eagleray")
    assert root.attributes["eagleray.request_id"] == f"r-{way}"
    assert (root.attributes["eagleray.model"], root.attributes["eagleray.version"]) == ("digits", 1)
    assert set(spans) == stages
    for span in spans.values():
        assert span.parent == root.id
        assert root.began <= span.began <= span.ended <= root.ended


def test_a_promotion_reaches_the_running_service_without_delay(service: Running) -> None:
    registry = service.registry
    with Client(service.url) as client:
        seen: list[int] = []
        registry.set_alias("digits", "production", 2)
        deadline = time.monotonic() + 60
        while (not seen or seen[-1] != 2) and time.monotonic() < deadline:
            seen.append(client.predict_response("digits", [IMAGES[0]]).version)
        assert seen[-1] == 2
        registry.set_alias("digits", "production", 1)
        while seen[-1] != 1 and time.monotonic() < deadline:
            seen.append(client.predict_response("digits", [IMAGES[0]]).version)
        assert seen[-1] == 1
        assert set(seen) == {1, 2}


def test_every_port_serves_only_permitted_callers(service: Running) -> None:
    """No application is configured: this machine alone is let in, on every port."""
    import psutil

    ours = {process.pid for process in psutil.Process(service.process.pid).children(True)}
    open_to_others = {
        connection.laddr.port
        for connection in psutil.net_connections("tcp")
        if connection.status == "LISTEN"
        and connection.pid in ours
        and connection.laddr.ip not in ("127.0.0.1", "::1")
    }
    for port in open_to_others:
        assert_refused(port)


def assert_refused(port: int) -> None:
    """A port that is reached from elsewhere refuses whoever has no key, in HTTP and in gRPC."""
    address = next(iter(outer_addresses()), None)
    if address is None:
        pytest.skip("this machine has no address but loopback")
    try:
        response = httpx.get(f"http://{address}:{port}/v1/models", timeout=5)
    except httpx.HTTPError:
        return  # not HTTP: Ray's own ports ask for its token
    assert response.status_code in (401, 403, 404), (port, response.text)


def outer_addresses() -> list[str]:
    import socket

    import psutil

    found = psutil.net_if_addrs().values()
    inet = [item.address for items in found for item in items if item.family is socket.AF_INET]
    return [address for address in inet if not address.startswith("127.")]


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_the_gateway_forwards_the_headers_that_identify_foreign_pages(
    service: Running, version: str
) -> None:
    with httpx.Client(
        base_url=service.url, http1=version == "HTTP/1.1", http2=version == "HTTP/2"
    ) as client:

        def ask(**headers: str) -> int:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            response = client.get("/v1/models", headers=names)
            assert response.http_version == version
            assert response.headers["x-content-type-options"] == "nosniff"
            return response.status_code

        assert ask() == ask(origin=service.url) == ask(host="localhost") == 200
        assert ask(host="rebound.test") == 421
        assert ask(origin="http://elsewhere.test") == ask(origin="null") == 403
        assert ask(sec_fetch_site="cross-site") == 403
        assert ask(host="rebound.test", x_forwarded_host="localhost") == 421


def test_a_new_configuration_replaces_the_replicas_without_delay(service: Running) -> None:
    service.config.write_text("max_imagers: 2\n")  # at first with a fault
    service.process.send_signal(signal.SIGHUP)
    until(lambda: "continues unchanged" in service.log.read_text())
    assert "max_imagers" in service.log.read_text()

    service.config.write_text("max_images: 2\n")
    service.process.send_signal(signal.SIGHUP)
    with httpx.Client(base_url=service.url, timeout=30) as client:

        def refuses_three() -> bool:
            assert client.post("/v1/models/digits/predict", content=IMAGES[0]).status_code == 200
            files = [("image", ("a.png", image)) for image in IMAGES[:3]]
            response = client.post("/v1/models/digits/predict", files=files)
            assert response.status_code in (200, 413)
            return response.status_code == 413

        until(refuses_three, seconds=120)
