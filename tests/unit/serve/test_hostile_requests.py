"""Requests that no client sends by accident: each is refused in one sentence, none is a defect."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.http_service import Served, http_service
from tests.support.memory import CAN_TELL, forget_peak, peak_bytes
from tests.support.serving import IMAGE, registry_with

MAX_GROWTH = 100_000_000
MAX_CPU_SECONDS = 5.0
TIMEOUT_S = 60.0  # of requests that must be answered however busy the machine is
SHORT_TIMEOUT_S = 1.0  # of requests that must run into it
PREDICT, INFER, MLFLOW = "/v1/models/digits/predict", "/v2/models/digits/infer", "/invocations"
TEXT = base64.b64encode(IMAGE).decode()
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    registry = registry_with(tmp_path_factory.mktemp("hostile"), "digits")
    with http_service(registry, max_images=4, max_body_mb=4, timeout_s=TIMEOUT_S) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(served: Served) -> Iterator[Served]:
    """A service of the same models that waits only briefly for the rest of a body."""
    registry = served.service.registry
    with http_service(registry, max_body_mb=4, timeout_s=SHORT_TIMEOUT_S) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=2 * TIMEOUT_S) as connected:
        assert connected.post(PREDICT, content=IMAGE).status_code == 200
        resident = forget_peak() if CAN_TELL else 0
        yield connected
        grown = peak_bytes() - resident if CAN_TELL else 0
        print(f"all requests together took {grown / 1e6:.0f} MB")
        assert grown < MAX_GROWTH


def form(content_type: str, *headers: bytes, body: bytes = IMAGE) -> dict[str, Any]:
    """Return a multipart form of one part with headers of any kind."""
    part = b"--b\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body + b"\r\n--b--\r\n"
    return {"content": part, "headers": {"content-type": content_type}}


def tensors(*inputs: Any, **members: Any) -> dict[str, Any]:
    """Return a request of the Open Inference Protocol."""
    return {"content": json.dumps({"inputs": list(inputs), **members}).encode()}


ENCODED = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
NUMBERS = {"name": "pixels", "datatype": "UINT8", "shape": [1, 32, 32, 1]}
FILE = b'content-disposition: form-data; name="image"; filename="a.png"'

ODD: dict[str, tuple[str, dict[str, Any], int]] = {
    "number of endless digits": (PREDICT, {"content": b"9" * 5000, "headers": JSON}, 400),
    "endless digits, MLflow": (MLFLOW, {"content": b'{"inputs":' + b"9" * 5000 + b"}"}, 400),
    "endless digits, tensors": (INFER, {"content": b'{"id":' + b"9" * 5000 + b"}"}, 400),
    "deep": (PREDICT, {"content": b"[" * 90_000, "headers": JSON}, 400),
    "deep and right": (MLFLOW, {"content": b"[" * 40_000 + b"]" * 40_000}, 400),
    "wide": (PREDICT, {"content": b"[" + b"[]," * 500_000 + b"1]", "headers": JSON}, 413),
    "wide, MLflow": (MLFLOW, {"content": b'{"inputs":[' + b"1," * 500_000 + b"1]}"}, 413),
    "no character": (PREDICT, {"content": b'{"image":{"base64":"\\ud800"}}', "headers": JSON}, 400),
    "a member that is no character": (
        PREDICT,
        {"content": b'{"\\ud800":{"base64":""}}', "headers": JSON},
        400,
    ),
    "a version that is no character": (
        PREDICT,
        {
            "content": b'{"version":"\\udfff","image":{"base64":"%s"}}' % TEXT.encode(),
            "headers": JSON,
        },
        422,
    ),
    "an input that is no character": (INFER, tensors({**ENCODED, "name": "\ud800"}), 400),
    "an output that is no character": (INFER, tensors(ENCODED, outputs=[{"name": "\ud800"}]), 400),
    "an id that is no character": (INFER, tensors(ENCODED, id="\ud800"), 200),
    "no Unicode": (PREDICT, {"content": b'{"image":{"base64":"\xff"}}', "headers": JSON}, 400),
    "no number": (
        PREDICT,
        {"content": b'{"image":{"base64":""},"top_k":NaN}', "headers": JSON},
        422,
    ),
    "no threshold": (PREDICT + "?threshold=nan", {"content": IMAGE}, 422),
    "an endless time": (PREDICT + "?timeout_ms=inf", {"content": IMAGE}, 422),
    "basic key that is no ASCII": (
        "/v1/models/digits/predict",
        {"content": IMAGE, "headers": {b"authorization": b"Basic \xe9\xe9"}},
        200,
    ),
    "header length of endless digits": (
        INFER,
        {**tensors(ENCODED), "headers": {"inference-header-content-length": "9" * 5000}},
        400,
    ),
    "negative header length": (
        INFER,
        {**tensors(ENCODED), "headers": {"inference-header-content-length": "-1"}},
        400,
    ),
    "header length in other digits": (
        INFER,
        {**tensors(ENCODED), "headers": {b"inference-header-content-length": b"\xb2"}},
        400,
    ),
    "raw size that is true": (
        INFER,
        tensors({**ENCODED, "parameters": {"binary_data_size": True}}),
        400,
    ),
    "negative shape": (INFER, tensors({**NUMBERS, "shape": [-1, -32, 32, 1], "data": []}), 400),
    "no images": (INFER, tensors({**ENCODED, "shape": [0], "data": []}), 400),
    "a shape beyond all numbers": (
        INFER,
        tensors({**ENCODED, "shape": [2**31 - 1] * 8}),
        400,
    ),
    "one output a thousand times": (
        INFER,
        tensors(ENCODED, outputs=[{"name": "probabilities"}] * 1000),
        400,
    ),
    "lists that are deep and wide": (
        INFER,
        {
            "content": b'{"inputs":[{"name":"pixels","datatype":"UINT8","shape":[1],"data":['
            + b"0," * 200_000
            + b"[" * 900
            + b"]" * 900
            + b"]}]}"
        },
        400,
    ),
    "more numbers than images have": (INFER, {"content": b"[" + b"1," * 2_050_000 + b"1]"}, 413),
    "giant base64": (
        PREDICT,
        {"content": b'{"image":{"base64":"%s"}}' % (b"A" * 3_900_000), "headers": JSON},
        400,
    ),
    "no boundary": (PREDICT, form("multipart/form-data", FILE), 400),
    "no disposition": (PREDICT, form("multipart/form-data; boundary=b", b"a: b"), 400),
    "no name": (
        PREDICT,
        form("multipart/form-data; boundary=b", b"content-disposition: form-data; filename=a"),
        400,
    ),
    "a charset that is no charset": (
        PREDICT,
        form("multipart/form-data; boundary=b; charset=undefined", FILE),
        400,
    ),
    "a charset of bytes": (
        PREDICT,
        form("multipart/form-data; boundary=b; charset=base64", FILE),
        200,
    ),
    "a thousand parts": (
        PREDICT,
        {"files": [("image", (f"{number}", b"x")) for number in range(1000)]},
        413,
    ),
    "a thousand and one parts": (
        PREDICT,
        {"files": [("image", (f"{number}", b"x")) for number in range(1001)]},
        400,
    ),
    "a part with a header without end": (
        PREDICT,
        form("multipart/form-data; boundary=b", b"x: " + b"y" * 1_000_000),
        400,
    ),
    "compressed": (
        PREDICT,
        {"content": IMAGE, "headers": {"content-encoding": "gzip"}},
        415,
    ),
    "compressed, MLflow": (
        MLFLOW,
        {"content": b"{}", "headers": {"content-encoding": "br"}},
        415,
    ),
    "a name without end": (f"/v1/models/{'a' * 20_000}/predict", {"content": IMAGE}, 404),
    "a name of another folder": ("/v1/models/..%2f..%2fetc/predict", {"content": IMAGE}, 404),
    "a name with a NUL": ("/v1/models/%00/predict", {"content": IMAGE}, 404),
    "a name that is no Unicode": ("/v1/models/%ff%fe/predict", {"content": IMAGE}, 404),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_request_gets_one_sentence(client: httpx.Client, name: str) -> None:
    path, request, status = ODD[name]
    began = time.process_time()  # of client and service, and not of what else the machine does
    response = client.post(path, **request)
    assert response.status_code == status, response.text[:500]
    assert time.process_time() - began < MAX_CPU_SECONDS
    if status != 200:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == status
        assert "Traceback" not in response.text
    assert client.post(PREDICT, content=IMAGE).status_code == 200


HEAD = b"POST /v1/models/digits/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"
ENDLESS = b"10000\r\n" + b"x" * 65_536 + b"\r\n"

LIES: dict[str, tuple[list[bytes], bytes]] = {
    "more is said than is taken": ([HEAD, b"content-length: 5000000\r\n\r\n"], b"413"),
    "more is said than there is": ([HEAD, b"content-length: 9%s\r\n\r\n" % (b"9" * 15)], b"413"),
    "digits without end": ([HEAD, b"content-length: %s\r\n\r\n" % (b"9" * 5000)], b"4"),
    "less than none": ([HEAD, b"content-length: -1\r\n\r\n"], b"400"),
    "two lengths": ([HEAD, b"content-length: 1\r\ncontent-length: 2\r\n\r\n", b"x"], b"400"),
    "chunks beyond the limit": (
        [HEAD, b"transfer-encoding: chunked\r\n\r\n", *[ENDLESS] * 100],
        b"413",
    ),
    "a chunk of a length that is no number": (
        [HEAD, b"transfer-encoding: chunked\r\n\r\n", b"zz\r\nx\r\n"],
        b"4",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_body_that_does_not_match_its_type_is_refused_in_time(
    served: Served, client: httpx.Client, name: str
) -> None:
    parts, status = LIES[name]
    response = served.say(*parts)
    assert response.startswith(b"HTTP/1.1 " + status), response[:300]
    assert client.post(PREDICT, content=IMAGE).status_code == 200
    assert served.service.byte_limiter.in_flight == 0


@pytest.mark.parametrize(
    "parts",
    [
        [b"content-length: 1000\r\n\r\n", IMAGE[:10]],
        [b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n"],
    ],
    ids=["fewer bytes than declared", "a chunk that does not come"],
)
def test_a_body_that_does_not_arrive_is_refused_after_the_time_limit(
    impatient: Served, parts: list[bytes]
) -> None:
    began = time.monotonic()
    response = impatient.say(HEAD, *parts)
    assert response.startswith(b"HTTP/1.1 408"), response[:300]
    assert time.monotonic() - began >= SHORT_TIMEOUT_S
    assert impatient.service.byte_limiter.in_flight == 0


def test_a_slow_body_that_keeps_arriving_is_accepted(served: Served) -> None:
    length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(IMAGE)
    response = served.say(HEAD, length, IMAGE[:100], IMAGE[100:], pause=0.3)
    assert response.startswith(b"HTTP/1.1 200")
