"""The Open Inference Protocol's tensors: read from any bytes without a defect, written exactly."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.core.errors import InputError, Reason
from eagleray.imaging import DecodedImage
from eagleray.imaging.geometry import Frame
from eagleray.serving import protocol
from eagleray.serving.protocol import InferRequest, InputTensor, RequestedOutput
from eagleray.tasks import Multiclass, Regression, Semantic
from eagleray.tasks.outcome import Outcome, Prediction
from eagleray.tasks.segmentation.semantic import MapPrediction
from tests.support.models import CONTRACT, small_package

TASK = Multiclass(labels=("a", "b", "c"))


def raw(elements: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in elements)


def post(inputs: Any, *tensors: bytes, **more: Any) -> InferRequest:
    head = json.dumps({"inputs": inputs, **more}).encode()
    return protocol.parse_rest_request(head + b"".join(tensors), len(head))


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_strings_come_back_from_their_raw_bytes(elements: list[bytes]) -> None:
    content = raw(elements)
    request = post(
        [
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [max(1, len(elements))],
                "parameters": {"binary_data_size": len(content)},
            }
        ],
        content,
    )
    assert request.inputs[0].elements == elements


@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(0, 400)))
def test_any_content_is_read_or_refused(body: bytes, length: int | None) -> None:
    with pytest.raises(InputError):
        protocol.read_images(protocol.parse_rest_request(body, length), CONTRACT)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "datatype", "data", "parameters", "binary_data_size", "inputs"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values, json_values)
def test_any_json_is_read_or_refused(inputs: Any, outputs: Any) -> None:
    body = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    with pytest.raises(InputError):
        protocol.read_images(protocol.parse_rest_request(body, None), CONTRACT)


def test_pixels_are_images_of_the_contract() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, *CONTRACT.shape), dtype=np.uint8)
    tensor = InputTensor("pixels", "UINT8", pixels.shape, pixels.ravel())
    images = protocol.read_images(InferRequest("", [tensor]), CONTRACT)
    assert all(isinstance(image, DecodedImage) for image in images)
    np.testing.assert_array_equal(np.stack([image.pixels for image in images]), pixels)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (InputTensor("image", "BYTES", (2,), [b"x"]), "does not match its 1 elements"),
        (
            InputTensor("picture", "BYTES", (1,), [b"x"]),
            "The request has 0 inputs with images; send one",
        ),
        (InputTensor("pixels", "BYTES", (1,), [b"x"]), "the input image, BYTES"),
        (InputTensor("image", "BYTES", (1, 1, 1), [b"x"]), "the input image, BYTES"),
        (InputTensor("pixels", "UINT8", (1, 1, 1, 1), np.zeros(1, np.uint8)), "[N, 32, 32, 1]"),
        (
            InputTensor("image", "UINT8", (1, 32, 32, 1), np.zeros(1024, np.uint8)),
            "the input pixels",
        ),
    ],
)
def test_other_tensors_are_refused_in_a_sentence(tensor: InputTensor, words: str) -> None:
    with pytest.raises(InputError) as refused:
        protocol.read_images(InferRequest("", [tensor]), CONTRACT)
    assert words in str(refused.value)


# --- attributes ---------------------------------------------------------------------------------


def attribute(datatype: str, data: list[Any], name: str = "age", **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data, **more}


@pytest.mark.parametrize(
    ("sent", "values"),
    [
        (attribute("FP32", [41, 20.5, None]), [41.0, 20.5, None]),
        (attribute("FP64", [[41.25], [-1e9]], shape=[2, 1]), [41.25, -1e9]),
        (attribute("INT32", [-7, 2**31 - 1]), [-7, 2**31 - 1]),
        (attribute("INT64", [2**63 - 1]), [2**63 - 1]),
        (attribute("BYTES", ["north", "", "été"]), ["north", None, "été"]),
    ],
)
def test_attributes_are_inputs_of_their_names(sent: dict[str, Any], values: list[Any]) -> None:
    request = post([sent])
    assert protocol.read_attributes(request, len(values)) == [{"age": value} for value in values]


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5), st.booleans())
def test_numbers_come_back_from_their_raw_bytes(values: list[int], wide: bool) -> None:
    datatype, dtype = ("FP64", "<f8") if wide else ("INT32", "<i4")
    content = np.asarray(values, dtype).tobytes()
    sent = attribute(datatype, values, parameters={"binary_data_size": len(content)})
    del sent["data"]
    told = protocol.read_attributes(post([sent], content), len(values))
    assert told == [{"age": value} for value in values]


def test_several_attributes_go_with_their_images() -> None:
    request = post([attribute("FP32", [1, 2]), attribute("BYTES", ["a", "b"], "site")])
    assert protocol.read_attributes(request, 2) == [
        {"age": 1.0, "site": "a"},
        {"age": 2.0, "site": "b"},
    ]
    assert protocol.read_attributes(post([]), 2) is None


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([attribute("FP32", [1])], "with shape [2] as the images, not [1]"),
        ([attribute("FP32", [1, 2])] * 2, "an attribute must be sent once"),
        ([attribute("FP32", [1, 2], shape=[1, 2])], "not [1, 2]"),
        ([attribute("FP32", [1, 2], shape=[3])], "does not match its 2 elements"),
        ([attribute("FP32", [1, "2"])], "an element of FP32 is a number or null"),
        ([attribute("INT32", [1, 2**31])], "a whole number from -2147483648 to 2147483647"),
        ([attribute("INT64", [1, 2.0])], "an element of INT64 is a whole number"),
        ([attribute("BOOL", [True, False])], "datatype BOOL is not supported; use BYTES or UINT8,"),
        ([attribute("BYTES", [1, 2])], "in JSON an element of BYTES is a string."),
        ([attribute("BYTES", ["\ud800", "a"])], "an element is not valid text"),
    ],
)
def test_invalid_attributes_are_refused_in_a_sentence(
    sent: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(InputError) as refused:
        protocol.read_attributes(post(sent), 2)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("datatype", "content", "words"),
    [
        ("FP64", b"12345678123", "11 bytes are not whole elements of FP64"),
        ("BYTES", raw([b"\xff"]), "an element is not valid text"),
    ],
)
def test_raw_bytes_that_are_no_attribute_are_refused(
    datatype: str, content: bytes, words: str
) -> None:
    sent = attribute(datatype, [0], parameters={"binary_data_size": len(content)})
    with pytest.raises(InputError, match=words):
        protocol.read_attributes(post([sent], content), 1)


# --- outputs ------------------------------------------------------------------------------------


def outcomes() -> list[Outcome]:
    scores = np.asarray([0.1, 0.7, 0.2], np.float32)
    good = Outcome(prediction=Prediction("b", 0.7, ("b",), None, scores))
    return [good, Outcome.failed(Reason.TRUNCATED, "it ends early")]


def test_an_image_that_failed_is_nan_beside_the_others() -> None:
    outputs = {
        item.name: item for item in protocol.select_outputs(outcomes(), TASK, InferRequest("", []))
    }
    assert list(outputs) == ["status", "label", "score", "probabilities"]
    assert outputs["status"].elements == [b"ok", b"truncated"]
    assert outputs["label"].elements == [b"b", b""]
    probabilities = outputs["probabilities"].elements
    assert isinstance(probabilities, np.ndarray)
    np.testing.assert_allclose(probabilities[0], [0.1, 0.7, 0.2])
    assert np.isnan(probabilities[1]).all()
    body, length = protocol.to_rest_response(
        list(outputs.values()), model="m", version=3, request_id="r", parameters={}
    )
    assert length is None
    told = json.loads(body)
    assert (told["model_version"], told["id"]) == ("3", "r")
    assert told["outputs"][3]["data"][3:] == [None] * 3


def test_outputs_are_raw_if_requested() -> None:
    wanted = [RequestedOutput("label", binary=True), RequestedOutput("score", binary=True)]
    outputs = protocol.select_outputs(outcomes(), TASK, InferRequest("", [], wanted))
    body, length = protocol.to_rest_response(
        outputs, model="m", version=1, request_id="", parameters={}
    )
    assert length is not None
    sizes = [
        item["parameters"]["binary_data_size"] for item in json.loads(body[:length])["outputs"]
    ]
    label, score = body[length : length + sizes[0]], body[length + sizes[0] :]
    assert label == raw([b"b", b""])
    np.testing.assert_allclose(np.frombuffer(score, np.float32)[0], 0.7)


def test_masks_are_base64_in_json_and_raw_if_requested() -> None:
    task = Semantic(labels=("background", "cell"))
    prediction = task.postprocess(np.ones((2, 4, 4), np.float32), Frame(8, 8))
    assert isinstance(prediction, MapPrediction)
    found = [Outcome(prediction=prediction), Outcome.failed(Reason.TRUNCATED, "it ends early")]

    def respond(binary: bool) -> tuple[bytes, int | None]:
        wanted = [RequestedOutput("mask", binary=binary)]
        outputs = protocol.select_outputs(found, task, InferRequest("", [], wanted))
        return protocol.to_rest_response(
            outputs, model="m", version=1, request_id="", parameters={}
        )

    body, _ = respond(binary=False)
    told = json.loads(body)["outputs"][0]["data"]
    assert [base64.b64decode(one) for one in told] == [prediction.mask, b""]
    body, length = respond(binary=True)
    assert body[length:] == raw([prediction.mask, b""])


def test_classes_are_the_likeliest_labels() -> None:
    wanted = [RequestedOutput("probabilities", classes=2)]
    (tensor,) = protocol.select_outputs(outcomes()[:1], TASK, InferRequest("", [], wanted))
    assert (tensor.shape, tensor.datatype) == ((1, 2), "BYTES")
    assert tensor.elements == [b"0.700000:1:b", b"0.200000:2:c"]
    with pytest.raises(InputError, match="There is no output boxes"):
        protocol.select_outputs(outcomes(), TASK, InferRequest("", [], [RequestedOutput("boxes")]))


def test_a_regression_gives_values() -> None:
    prediction = Prediction(None, None, (), 3.5, np.empty(0, np.float32))
    outputs = protocol.select_outputs(
        [Outcome(prediction=prediction)], Regression(), InferRequest("", [])
    )
    assert [(item.name, list(item.elements)) for item in outputs] == [
        ("status", [b"ok"]),
        ("value", [3.5]),
    ]
    described = protocol.model_metadata("m", [1, 2], small_package(task=Regression()).manifest)
    assert [item["name"] for item in described["outputs"]] == ["status", "value"]
    assert described["versions"] == ["1", "2"]
