"""Every form in which callers send an image: read as it is meant, or refused in one sentence."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eagleray import AsyncClient, Client
from eagleray.core.errors import InputError, Reason
from eagleray.inference.predictor import Predictor
from eagleray.registry.registry import Registry
from eagleray.serving.protocol.image_text import decode_image_text
from tests.support.http_service import Served, http_service
from tests.support.models import golden_png, small_package
from tests.support.serving import IMAGE, RunningApp, registry_with, with_service

PREDICT, INVOCATIONS = "/v1/models/digits/predict", "/v1/models/digits/invocations"
INFER = "/v2/models/digits/infer"
TEXT = base64.b64encode(IMAGE).decode()
LINES = base64.encodebytes(IMAGE).decode().replace("\n", "\r\n ")
URL_SAFE = base64.urlsafe_b64encode(IMAGE).decode().rstrip("=")
DATA_URL = f"data:image/png;base64,{TEXT}"
ESCAPED = "data:image/png," + "".join(f"%{byte:02X}" for byte in IMAGE)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registry_with(tmp_path_factory.mktemp("forms"), "digits")


def raw(content: Any, kind: str | None = None) -> dict[str, Any]:
    return {"content": content, "headers": {} if kind is None else {"content-type": kind}}


def part(head: str, content: bytes) -> bytes:
    return f"--b\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"


def form(*parts: bytes) -> dict[str, Any]:
    return raw(b"".join(parts) + b"--b--\r\n", "multipart/form-data; boundary=b")


def tensor(**fields: Any) -> dict[str, Any]:
    one = {"name": "image", "shape": [1], "datatype": "BYTES", **fields}
    return raw(json.dumps({"inputs": [one]}), "application/json")


async def pieces() -> Any:
    for start in range(0, len(IMAGE), 100):
        yield IMAGE[start : start + 100]


READ: dict[str, tuple[str, dict[str, Any]]] = {
    "no content type": (PREDICT, raw(IMAGE)),
    "an empty content type": (PREDICT, raw(IMAGE, "")),
    "image/jpg": (PREDICT, raw(IMAGE, "image/jpg")),
    "as S3 calls it": (PREDICT, raw(IMAGE, "binary/octet-stream")),
    "as curl calls it": (PREDICT, raw(IMAGE, "application/x-www-form-urlencoded")),
    "identity": (PREDICT, {"content": IMAGE, "headers": {"content-encoding": "identity"}}),
    "JSON as curl calls it": (
        PREDICT,
        raw(json.dumps({"image": TEXT}), "application/x-www-form-urlencoded"),
    ),
    "JSON by another name": (PREDICT, raw(json.dumps({"image": TEXT}), "application/a+json")),
    "a form in the URL's way": (PREDICT, {"data": {"image": TEXT}}),
    "such a form, not escaped": (
        PREDICT,
        raw(f"image={TEXT}", "application/x-www-form-urlencoded"),
    ),
    "base64 alone": (PREDICT, {"json": {"image": TEXT}}),
    "base64 alone in a list": (PREDICT, {"json": {"images": [TEXT]}}),
    "base64 in lines": (PREDICT, {"json": {"image": {"base64": LINES}}}),
    "base64 for URLs": (PREDICT, {"json": {"image": {"base64": URL_SAFE}}}),
    "base64 as TensorFlow calls it": (PREDICT, {"json": {"image": {"b64": TEXT}}}),
    "a data URL alone": (PREDICT, {"json": {"image": DATA_URL}}),
    "a data URL as URL": (PREDICT, {"json": {"image": {"url": DATA_URL}}}),
    "a data URL as location": (PREDICT, {"json": {"image": {"uri": DATA_URL}}}),
    "a data URL that is escaped": (PREDICT, {"json": {"image": ESCAPED}}),
    "a form's file of an odd name": (PREDICT, form(part('name="x"; filename="\\"/.."', IMAGE))),
    "a form's file without a name": (PREDICT, form(part('name="image"; filename=""', IMAGE))),
    "a form's field": (PREDICT, form(part('name="image"', IMAGE))),
    "a form's field in base64": (PREDICT, form(part('name="images[]"', TEXT.encode()))),
    "a form's file in base64": (
        PREDICT,
        form(
            part('name="image"; filename="a"\r\nContent-Transfer-Encoding: base64', LINES.encode())
        ),
    ),
    "MLflow": (INVOCATIONS, {"json": {"inputs": [URL_SAFE]}}),
    "MLflow, one text": (INVOCATIONS, {"json": {"inputs": LINES}}),
    "MLflow, one named text": (INVOCATIONS, {"json": {"inputs": {"image": TEXT}}}),
    "MLflow, columns": (INVOCATIONS, {"json": {"inputs": {"image": [TEXT], "age": [41]}}}),
    "MLflow, a data URL": (INVOCATIONS, {"json": {"dataframe_records": [{"image": DATA_URL}]}}),
    "TensorFlow": (INVOCATIONS, {"json": {"instances": [{"b64": TEXT}]}}),
    "TensorFlow, named": (INVOCATIONS, {"json": {"instances": [{"image": {"b64": TEXT}}]}}),
    "a tensor": (INFER, tensor(data=[TEXT])),
    "a tensor in lines": (INFER, tensor(data=[LINES])),
    "a tensor for URLs": (INFER, tensor(data=[URL_SAFE])),
    "a tensor of a data URL": (INFER, tensor(data=[DATA_URL])),
    "a tensor of two dimensions": (INFER, tensor(data=[[TEXT]], shape=[1, 1])),
}

REFUSED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "text": (PREDICT, raw(TEXT, "text/plain"), 415, "send image/*"),
    "compressed": (
        PREDICT,
        {"content": gzip.compress(IMAGE), "headers": {"content-encoding": "gzip"}},
        415,
        "compressed body is not supported",
    ),
    "an empty text": (PREDICT, {"json": {"image": ""}}, 400, "empty"),
    "an attribute that is a list": (
        PREDICT,
        {"json": {"image": {"base64": TEXT, "attributes": {"age": [41]}}}},
        400,
        "image.attributes.age: an attribute is a string, a number",
    ),
    "attributes that are a list": (
        PREDICT,
        {"json": {"image": {"base64": TEXT, "attributes": [41]}}},
        400,
        "image.attributes must be an object",
    ),
    "a parameter twice": (
        PREDICT + "?top_k=2&top_k=3",
        raw(IMAGE),
        422,
        "top_k is in the query more than once",
    ),
    "null": (PREDICT, {"json": {"image": None}}, 400, "one of image and images"),
    "nulls": (PREDICT, {"json": {"images": [None]}}, 400, "images.0: an image is a string"),
    "a number": (PREDICT, {"json": {"image": 3}}, 400, "an image is a string in base64"),
    "a list": (PREDICT, {"json": {"image": [TEXT]}}, 400, "an image is a string in base64"),
    "lists in a list": (PREDICT, {"json": {"images": [[TEXT]]}}, 400, "images.0"),
    "a body that is a list": (PREDICT, {"json": [TEXT]}, 400, "must be an object, as in"),
    "a body that is a text": (PREDICT, {"json": TEXT}, 400, "must be an object, as in"),
    "MLflow's body": (PREDICT, {"json": {"instances": [TEXT]}}, 422, "there are top_k"),
    "the second is none": (PREDICT, {"json": {"images": [TEXT, "?"]}}, 400, "images.1.base64"),
    "a + that was sent as it is": (
        PREDICT,
        {"json": {"image": TEXT.replace("+", " ").replace("/", " ")}},
        400,
        "a + that is not escaped",
    ),
    "an end that is missing": (PREDICT, {"json": {"image": "iVBOR"}}, 400, "end is missing"),
    "a data URL without data": (PREDICT, {"json": {"image": "data:image/png"}}, 400, "comma"),
    "an address": (PREDICT, {"json": {"image": "http://a.example/b"}}, 403, "fetches no URLs"),
    "a location": (PREDICT, {"json": {"image": "s3://a/b"}}, 403, "from that location"),
    "a form's empty file": (PREDICT, form(part('name="image"; filename=""', b"")), 400, "empty"),
    "a form without an image": (PREDICT, form(part('name="top_k"', b"2")), 400, "no image"),
    "a form's other field": (
        PREDICT,
        form(part('name="image"; filename="a"', IMAGE), part('name="topk"', b"2")),
        422,
        "topk is not known; there are top_k",
    ),
    "a form's field twice": (
        PREDICT,
        form(part('name="top_k"', b"2"), part('name="top_k"', b"3")),
        422,
        "more than once",
    ),
    "a form of too many fields": (
        PREDICT,
        raw("image=&" * 1001, "application/x-www-form-urlencoded"),
        400,
        "more than 1,000 fields",
    ),
    "MLflow, one list too many": (INVOCATIONS, {"json": {"inputs": [[[TEXT]]]}}, 400, "Row 0"),
    "MLflow, null": (INVOCATIONS, {"json": {"inputs": [TEXT, None]}}, 400, "Row 1"),
    "MLflow, numbers": (INVOCATIONS, {"json": {"inputs": [[[1, 2], [3, 4]]]}}, 400, "base64"),
    "MLflow, no image": (
        INVOCATIONS,
        {"json": {"dataframe_split": {"columns": ["photo", "age"], "data": [[TEXT, 1]]}}},
        400,
        "column is named image",
    ),
    "MLflow, columns of other lengths": (
        INVOCATIONS,
        {"json": {"inputs": {"image": [TEXT], "age": [1, 2]}}},
        400,
        "for each row",
    ),
    "MLflow, a table": (INVOCATIONS, raw("image\nabc", "text/csv"), 415, "send JSON"),
    "MLflow, an image": (INVOCATIONS, raw(IMAGE, "image/png"), 415, "send JSON"),
    "MLflow, beside params": (
        INVOCATIONS,
        {"json": {"inputs": [TEXT], "top_k": 1}},
        400,
        "members of params",
    ),
    "MLflow, an unknown parameter": (
        INVOCATIONS,
        {"json": {"inputs": [TEXT], "params": {"temperature": 1}}},
        422,
        "temperature is not known",
    ),
    "MLflow, no params": (
        INVOCATIONS,
        {"json": {"inputs": [TEXT], "params": [1]}},
        400,
        "params must be an object",
    ),
    "MLflow, no such version": (
        INVOCATIONS,
        {"json": {"inputs": [TEXT], "params": {"version": 9}}},
        404,
        "no version 9",
    ),
    "a tensor of numbers": (
        INFER,
        tensor(datatype="UINT8", shape=[1, 3], data=[1, 2, 3]),
        400,
        "must be BYTES",
    ),
    "a tensor of null": (INFER, tensor(data=[None]), 400, "string in base64"),
    "a tensor that is no base64": (INFER, tensor(data=["?"]), 400, "the character '?'"),
    "a tensor of an address": (INFER, tensor(data=["http://a/b"]), 400, "it is an address"),
    "a tensor of no ASCII": (INFER, tensor(data=["data:,\ud800"]), 400, "ASCII"),
    "a tensor of another name": (INFER, tensor(name="input_1", data=[TEXT]), 400, "send one"),
}

_INTERNAL = re.compile(r"\s--[a-z]|Error\b|[a-z][A-Z][a-z]+In|pydantic|dictionary|NoneType")


@pytest.fixture(scope="module")
def responses(registry: Registry) -> dict[str, Any]:
    found = {}

    async def test(running: RunningApp) -> None:
        refused = {name: (path, body) for name, (path, body, *_) in REFUSED.items()}
        for name, (path, body) in (READ | refused).items():
            found[name] = await running.client.post(path, **body)
        found["in pieces"] = await running.client.post(PREDICT, content=pieces())

    with_service(registry, test)
    return found


@pytest.mark.parametrize("name", [*READ, "in pieces"])
def test_an_image_is_read_in_every_form(responses: dict[str, Any], name: str) -> None:
    expected = responses["image/jpg"].json()["results"][0]
    assert responses[name].status_code == 200, responses[name].text
    body = responses[name].json()
    if "outputs" in body:
        tensors = {item["name"]: item["data"] for item in body["outputs"]}
        assert tensors["label"] == [expected["label"]]
        assert tensors["score"] == pytest.approx([expected["score"]], abs=1e-5)
    else:
        (result,) = body.get("results") or body["predictions"]
        assert (result["status"], result["label"]) == ("ok", expected["label"])
        assert result["score"] == pytest.approx(expected["score"], abs=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_images_are_refused_in_a_sentence_for_callers(
    responses: dict[str, Any], name: str
) -> None:
    _, _, status, words = REFUSED[name]
    response = responses[name]
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert words in detail
    assert not _INTERNAL.search(detail), detail


def test_files_under_one_name_and_several_are_predicted_in_order(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        files = [("a", ("x.png", golden_png(n))) for n in (1, 2)]
        files += [("b", ("x.png", golden_png(3))), ("a", ("y.png", b"no image"))]
        results = (await running.client.post(PREDICT, files=files)).json()["results"]
        alone = [
            (await running.client.post(PREDICT, content=golden_png(n))).json()["results"][0]
            for n in (1, 2, 3)
        ]
        assert [item["label"] for item in results[:3]] == [item["label"] for item in alone]
        assert results[3]["reason"] == "not_an_image"

    with_service(registry, test)


def test_parameters_apply_wherever_they_are_sent(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        async def listed(path: str, **body: Any) -> int:
            response = (await running.client.post(path, **body)).json()
            return len((response.get("results") or response["predictions"])[0]["top"])

        by_form = form(part('name="image"; filename="a"', IMAGE), part('name="top_k"', b"2"))
        assert await listed(PREDICT, **by_form) == 2
        assert await listed(PREDICT, data={"image": TEXT, "top_k": "2"}) == 2
        params = {"inputs": [TEXT], "params": {"top_k": 2}}
        assert await listed(INVOCATIONS, json=params) == 2
        assert await listed(INVOCATIONS + "?top_k=1", json={"inputs": [TEXT]}) == 1
        params["params"] = {"threshold": 1.0}
        assert await listed(INVOCATIONS, json=params) == 0

    with_service(registry, test)


@pytest.mark.parametrize("length", range(1, 9))
def test_base64_is_read_with_any_padding_and_alphabet(length: int) -> None:
    data = bytes([251, 255, 190, 62, 0, 63, 255, 224])[:length]
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(data).decode()
        for written in (text, text.rstrip("="), f" {text}\n", f"{text[:4]}\r\n\t{text[4:]}"):
            assert decode_image_text(written) == data


@pytest.mark.parametrize("text", ["a", "abc d", "ab=c", "äbcd", "data:;base64,a", "abc!"])
def test_invalid_base64_is_never_decoded_to_other_bytes(text: str) -> None:
    with pytest.raises(InputError):
        decode_image_text(text)


# --- in Python ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "seven.png"
    path.write_bytes(IMAGE)
    return path


@pytest.fixture(scope="module")
def served(registry: Registry) -> Iterator[Served]:
    with http_service(registry) as running:
        yield running


@pytest.fixture(scope="module")
def predictor(registry: Registry) -> Predictor:
    package = registry.load(registry.get("digits", version=1))
    return Predictor(package, engine="eager", num_threads=1, batch_size=1)


def test_predictor_and_client_take_files_in_every_form(
    predictor: Predictor, served: Served, file: Path
) -> None:
    (expected,) = predictor.predict([IMAGE])
    assert expected.prediction is not None
    written = BytesIO()
    written.write(IMAGE)  # and left at its end
    with file.open("rb") as opened, file.open("rb") as again, Client(served.url) as client:
        forms: list[Any] = [
            bytearray(IMAGE),
            memoryview(IMAGE),
            np.frombuffer(IMAGE, np.uint8),
            file,
            written,
        ]
        outcomes = predictor.predict([*forms, opened])
        results = client.predict_many("digits", [*forms, again])
        alone = [client.predict("digits", image).label for image in (file, memoryview(IMAGE))]
    predictions = [outcome.prediction for outcome in outcomes]
    assert [item and item.label for item in predictions] == [expected.prediction.label] * 6
    assert [item.label for item in results] == [expected.prediction.label] * 6
    assert alone == [expected.prediction.label] * 2


def test_predictor_and_client_say_which_images_they_accept(
    predictor: Predictor, file: Path
) -> None:
    decoded = Image.open(file)
    predict_all: Any = predictor.predict  # what it is given here are no images
    with Client("http://127.0.0.1:1") as client:
        for wrong, words in [
            (decoded, r"not a PIL\..*encoded first"),
            (np.asarray(decoded), r"not a numpy\.ndarray.*encoded first"),
            (None, "not a NoneType"),
            (7, "not a int"),
        ]:
            for predict in (lambda it: predict_all([it]), lambda it: client.predict("m", it)):
                with pytest.raises(TypeError, match=words):
                    predict(wrong)
        with file.open(encoding="latin-1") as text, pytest.raises(TypeError, match="mode 'rb'"):
            predict_all([text])
        with pytest.raises(TypeError, match=r"write Path\(…\)"):
            predict_all([str(file)])
        with pytest.raises(ValueError, match=r"write Path\(…\)"):
            client.predict("digits", "seven.png")
        for single in (IMAGE, file, str(file)):
            for several in (predict_all, lambda it: client.predict_many("digits", it)):
                with pytest.raises(TypeError, match=r"write \[image\] for one"):
                    several(single)


def test_no_images_have_no_results_without_a_request(predictor: Predictor) -> None:
    assert predictor.predict([]) == []
    with Client("http://127.0.0.1:1") as client:
        assert client.predict_many("digits", []) == []

    async def ask() -> list[Any]:
        async with AsyncClient("http://127.0.0.1:1") as client:
            return await client.predict_many("digits", [])

    assert asyncio.run(ask()) == []


def test_a_path_without_a_file_is_an_outcome_of_its_own(
    predictor: Predictor, file: Path, tmp_path: Path
) -> None:
    outcomes = predictor.predict([tmp_path / "none.png", tmp_path, file])
    failures = [outcome.failure for outcome in outcomes]
    assert [failure and failure.reason for failure in failures] == [
        Reason.MISSING,
        Reason.UNREADABLE,
        None,
    ]
    assert failures[0] is not None
    assert "none.png" in failures[0].message


def test_a_client_sends_a_data_url_as_the_image_that_it_is(served: Served) -> None:
    with Client(served.url) as client:
        assert client.predict("digits", DATA_URL) == client.predict("digits", IMAGE)


def test_a_predictor_with_threads_refuses_them_too() -> None:
    predictor = Predictor(small_package(), engine="eager", decode_threads=2)
    with pytest.raises(TypeError, match="not a NoneType"):
        predictor.predict([IMAGE, None])  # type: ignore[list-item]
