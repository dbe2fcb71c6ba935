"""The Open Inference Protocol, version 2: tensors in and out, in JSON and in its binary extension.

A model takes either of two inputs:

    image    BYTES (N) or (N, 1)      encoded images, as files hold them
    pixels   UINT8 (N, H, W, C)       images that were decoded under the model's contract

beside it one for each attribute, by its name, where the model takes some

    BYTES (N)                         text; an empty one is not known
    FP32, FP64, INT32, INT64 (N)      numbers; NaN, in JSON null, is not known

and gives

    status         BYTES (N)          `ok`, or the reason code of an image that cannot be used
    label          BYTES (N)          classifiers: the answer in one word; empty where none holds
    score          FP32 (N)           classifiers: its probability
    probabilities  FP32 (N, labels)   classifiers: of every label, in the model's order
    value          FP32 (N)           regressions

Numbers of an image that cannot be used are NaN. Clients of other servers work unchanged.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.imaging import DecodedImage, ImageContract
from eagleray.models.package import ModelManifest
from eagleray.serving.image_text import decode_image_text
from eagleray.serving.json_body import MAX_NUMBERS, read_json
from eagleray.tasks import Outcome, Task
from eagleray.tasks.tensors import NamedTensor, TensorSpec, text_tensor

__all__ = [
    "InferRequest",
    "InputTensor",
    "OutputTensor",
    "RequestedOutput",
    "as_json",
    "as_raw",
    "attributes_of",
    "images_of",
    "metadata",
    "numbers",
    "outputs_of",
    "parse_http",
    "raw_elements",
]

_MAX_ELEMENTS = 2**31
_IMAGES = ("image", "pixels")
_NUMBERS: Mapping[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input.

    Attributes:
        name: `image`, `pixels` or an attribute.
        datatype: `BYTES`, or of numbers.
        shape: As sent.
        elements: BYTES as a list, else a flat array.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: list[bytes] | npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that is asked for.

    Attributes:
        name: Its own.
        binary: Whether as raw bytes.
        classes: How many of the likeliest, as `score:index:label`; 0 for the tensor itself.
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output: strings as a list, numbers as an array."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: list[bytes] | npt.NDArray[Any]
    binary: bool = False


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request, however it came.

    Attributes:
        id: The caller's.
        inputs: By their order.
        wanted: Outputs asked for; empty for all.
        all_binary: Whether outputs are raw unless they say otherwise.
        parameters: The others.
    """

    id: str
    inputs: Sequence[InputTensor]
    wanted: Sequence[RequestedOutput] = ()
    all_binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


# --- from HTTP -----------------------------------------------------------------------------------


def parse_http(body: bytes, header_length: int | None) -> InferRequest:
    """Read a request of the REST protocol.

    Args:
        body: JSON, followed by the raw tensors.
        header_length: Bytes of the JSON; None for all.

    Raises:
        InputError: It is not one.
    """
    length = len(body) if header_length is None else header_length
    if not 0 <= length <= len(body):
        raise InputError(
            f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes."
        )
    head = read_json(body[:length], max_values=MAX_NUMBERS)
    if not isinstance(head, dict):
        raise InputError("The request is no JSON object.")
    rest = memoryview(body)[length:]
    inputs = []
    for item in _list_of_objects(head, "inputs"):
        tensor, used = _input(item, rest)
        inputs.append(tensor)
        rest = rest[used:]
    if len(rest):
        raise InputError(f"{len(rest)} bytes follow the last tensor.")
    parameters = head.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InputError("parameters is no JSON object.")
    return InferRequest(
        id=str(head.get("id") or ""),
        inputs=inputs,
        wanted=[_wanted(item) for item in _list_of_objects(head, "outputs")],
        all_binary=parameters.get("binary_data_output") is True,
        parameters=parameters,
    )


def _list_of_objects(head: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = head.get(name) or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InputError(f"{name} is no list of JSON objects.")
    return found


def _wanted(item: dict[str, Any]) -> RequestedOutput:
    parameters = item.get("parameters") or {}
    classes = parameters.get("classification", 0) if isinstance(parameters, dict) else None
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
        raise InputError("classification is a number of classes.")
    return RequestedOutput(str(item.get("name")), parameters.get("binary_data") is True, classes)


def _input(item: dict[str, Any], rest: memoryview) -> tuple[InputTensor, int]:
    """Read an input, and how many of the raw bytes are its own."""
    name, datatype = str(item.get("name")), str(item.get("datatype"))
    shape = _shape(name, item.get("shape"))
    parameters = item.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise InputError(f"Input {name}: the body does not hold its {size} raw bytes.")
        return InputTensor(name, datatype, shape, raw_elements(name, datatype, rest[:size])), size
    return InputTensor(name, datatype, shape, _json_elements(name, datatype, item.get("data"))), 0


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    good = isinstance(shape, list) and 0 < len(shape) <= 8
    if not good or not all(type(side) is int and 0 <= side < _MAX_ELEMENTS for side in shape):
        raise InputError(f"Input {name}: shape is a list of whole numbers.")
    return tuple(shape)


def raw_elements(
    name: str, datatype: str, raw: memoryview | bytes
) -> list[bytes] | npt.NDArray[Any]:
    """Read the elements of a raw tensor.

    Raises:
        InputError: They are not of the type.
    """
    if datatype == "BYTES":
        return _raw_strings(name, raw)
    dtype = _dtype(name, datatype)
    if len(raw) % dtype.itemsize:
        raise InputError(f"Input {name}: {len(raw):,} bytes are no whole elements of {datatype}.")
    return np.frombuffer(raw, dtype)


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    if datatype not in _NUMBERS:
        raise InputError(
            f"Input {name}: datatype {datatype} is not taken; use BYTES or {', '.join(_NUMBERS)}."
        )
    return _NUMBERS[datatype]


def _raw_strings(name: str, raw: memoryview | bytes) -> list[bytes]:
    """Read strings that each come after their length, four bytes with the lowest first."""
    found, position = [], 0
    while position < len(raw):
        if position + 4 > len(raw):
            raise InputError(f"Input {name}: its last element has no length.")
        (length,) = struct.unpack_from("<I", raw, position)
        position += 4
        if position + length > len(raw):
            raise InputError(f"Input {name}: an element is longer than the tensor.")
        found.append(bytes(raw[position : position + length]))
        position += length
    return found


def _json_elements(name: str, datatype: str, data: Any) -> list[bytes] | npt.NDArray[Any]:
    if not isinstance(data, list):
        raise InputError(f"Input {name} has neither data nor binary_data_size.")
    flat = _flatten(data)
    if datatype == "BYTES":
        return _json_strings(name, flat)
    return numbers(name, datatype, flat)


def _json_strings(name: str, values: Sequence[Any]) -> list[bytes]:
    """Read strings: an image in base64, as JSON has no bytes, and others as they are."""
    if not all(isinstance(value, str) for value in values):
        how = " in base64" if name == "image" else ""
        raise InputError(f"Input {name}: in JSON an element of BYTES is a string{how}.")
    if name == "image":
        return [decode_image_text(value) for value in values]
    try:
        return [value.encode() for value in values]
    except ValueError:
        raise InputError(f"Input {name}: an element is no text.") from None


def numbers(name: str, datatype: str, values: Sequence[Any]) -> npt.NDArray[Any]:
    """Read the elements of a tensor from plain numbers.

    Raises:
        InputError: They are not of the type.
    """
    dtype = _dtype(name, datatype)
    if dtype.kind == "f":
        if not all(value is None or type(value) in (int, float) for value in values):
            raise InputError(f"Input {name}: an element of {datatype} is a number or null.")
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused then
            given = [math.nan if value is None else _float(value) for value in values]
            return np.asarray(given, dtype)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    if not all(type(value) is int and least <= value <= most for value in values):
        raise InputError(
            f"Input {name}: an element of {datatype} is a whole number from {least} to {most}."
        )
    return np.asarray(values, dtype)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON's whole numbers have no limit
        return math.inf


def _flatten(data: list[Any]) -> list[Any]:
    """Return the leaves of nested lists, in order."""
    leaves: list[Any] = []
    open_lists = [iter(data)]
    while open_lists:
        for item in open_lists[-1]:
            if isinstance(item, list):
                open_lists.append(iter(item))
                break
            leaves.append(item)
        else:
            open_lists.pop()
    return leaves


# --- images and attributes -----------------------------------------------------------------------


def images_of(request: InferRequest, contract: ImageContract) -> list[bytes | DecodedImage]:
    """Return the images of a request.

    Raises:
        InputError: Its input is not what the model takes.
    """
    tensors = [tensor for tensor in request.inputs if tensor.name in _IMAGES]
    if len(tensors) != 1:
        raise InputError(f"Of the inputs {len(tensors)} are images; send one, image or pixels.")
    (tensor,) = tensors
    _require_shape(tensor)
    if isinstance(tensor.elements, list):
        if tensor.name != "image" or len(tensor.shape) > 2 or tensor.shape[1:] not in ((), (1,)):
            raise InputError("Encoded images are the input image, BYTES of shape [N] or [N, 1].")
        return list(tensor.elements)
    height, width, channels = contract.shape
    if tensor.name == "image":
        raise InputError(
            f"Input image is BYTES, one element for each encoded image, not {tensor.datatype}; "
            "images that are decoded are the input pixels."
        )
    if tensor.name != "pixels" or tensor.datatype != "UINT8" or tensor.shape[1:] != contract.shape:
        raise InputError(
            "Decoded images are the input pixels, UINT8 of shape "
            f"[N, {height}, {width}, {channels}]."
        )
    pixels = tensor.elements.reshape(tensor.shape)
    return [DecodedImage(image, width, height) for image in pixels]


def attributes_of(request: InferRequest, num_images: int) -> list[dict[str, object]] | None:
    """Return what a request says of each image besides; None where it says nothing.

    Raises:
        InputError: It says it of more or fewer images, or in no text.
    """
    columns: dict[str, list[object]] = {}
    for tensor in request.inputs:
        if tensor.name in _IMAGES:
            continue
        _require_shape(tensor)
        if tensor.shape not in ((num_images,), (num_images, 1)) or tensor.name in columns:
            raise InputError(
                f"Input {tensor.name}: an attribute is sent once, with the shape [{num_images}] of "
                f"the images, not {list(tensor.shape)}."
            )
        columns[tensor.name] = _attribute_values(tensor)
    if not columns:
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _attribute_values(tensor: InputTensor) -> list[object]:
    if isinstance(tensor.elements, list):
        try:
            return [element.decode() or None for element in tensor.elements]
        except UnicodeDecodeError:
            raise InputError(f"Input {tensor.name}: an element is no text.") from None
    return [None if math.isnan(value) else value for value in tensor.elements.tolist()]


def _require_shape(tensor: InputTensor) -> None:
    if math.prod(tensor.shape) != len(tensor.elements):
        raise InputError(
            f"Input {tensor.name}: shape {list(tensor.shape)} is not that of "
            f"{len(tensor.elements):,} elements."
        )


# --- outputs -------------------------------------------------------------------------------------


def metadata(name: str, versions: Sequence[int], manifest: ModelManifest) -> dict[str, Any]:
    """Describe a model as the protocol does."""
    task, contract = manifest.task, manifest.contract
    specs = (TensorSpec("status", "BYTES"), *task.tensor_specs())
    outputs = [_describe(spec.name, spec.datatype, list(spec.shape)) for spec in specs]
    return {
        "name": name,
        "versions": [str(version) for version in versions],
        "platform": "eagleray",
        "inputs": [
            _describe("image", "BYTES", [-1]),
            _describe("pixels", "UINT8", [-1, *contract.shape]),
            *(
                _describe(attribute.name, "FP32" if attribute.kind == "number" else "BYTES", [-1])
                for attribute in manifest.attributes
            ),
        ],
        "outputs": outputs,
    }


def _describe(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def outputs_of(
    outcomes: Sequence[Outcome], task: Task, request: InferRequest
) -> list[OutputTensor]:
    """Return the outputs that a request asks for.

    Raises:
        InputError: The model has no such output.
    """
    all_outputs = _all_outputs(outcomes, task)
    given = {tensor.name: tensor for tensor in all_outputs}
    wanted = request.wanted or [RequestedOutput(name) for name in given]
    outputs = []
    for item in wanted:
        if item.name not in given:
            raise InputError(
                f"There is no output {item.name}, or it is asked for twice; there are "
                f"{', '.join(tensor.name for tensor in all_outputs)}."
            )
        tensor = given.pop(item.name)  # again and again it would be an answer without bounds
        if item.classes:
            tensor = _classes(tensor, task, item.classes)
        binary = item.binary or request.all_binary
        outputs.append(
            OutputTensor(tensor.name, tensor.datatype, tensor.shape, tensor.elements, binary)
        )
    return outputs


def _all_outputs(outcomes: Sequence[Outcome], task: Task) -> list[NamedTensor]:
    status = [
        "ok" if outcome.failure is None else outcome.failure.reason.value for outcome in outcomes
    ]
    tensors = task.tensors([outcome.prediction for outcome in outcomes])
    return [text_tensor("status", status), *tensors]


def _classes(tensor: NamedTensor, task: Task, count: int) -> NamedTensor:
    """Return the likeliest labels of each image as `score:index:label`."""
    if tensor.name != "probabilities" or isinstance(tensor.elements, list):
        raise InputError("classification is for the output probabilities.")
    count = min(count, len(task.labels))
    order = np.argsort(-tensor.elements, axis=1, kind="stable")[:, :count]
    elements = [
        f"{row[index]:f}:{index}:{task.labels[index]}".encode()
        for row, best in zip(tensor.elements, order, strict=True)
        for index in best
    ]
    return NamedTensor(tensor.name, "BYTES", (len(order), count), elements)


def as_json(
    outputs: Sequence[OutputTensor], *, model: str, version: int, request_id: str, parameters: Any
) -> tuple[bytes, int | None]:
    """Write a response of the REST protocol.

    Returns:
        The body, and the length of its JSON where raw tensors follow.
    """
    described, raw = [], []
    for tensor in outputs:
        item = _describe(tensor.name, tensor.datatype, list(tensor.shape))
        if tensor.binary:
            content = as_raw(tensor)
            item["parameters"] = {"binary_data_size": len(content)}
            raw.append(content)
        else:
            item["data"] = _json_data(tensor)
        described.append(item)
    head = {
        "model_name": model,
        "model_version": str(version),
        "id": request_id,
        "parameters": parameters,
        "outputs": described,
    }
    text = json.dumps(head).encode()
    return text + b"".join(raw), len(text) if raw else None


def as_raw(tensor: OutputTensor) -> bytes:
    """Return the raw bytes of an output."""
    if isinstance(tensor.elements, list):
        return b"".join(struct.pack("<I", len(item)) + item for item in tensor.elements)
    return np.ascontiguousarray(tensor.elements).tobytes()


def _json_data(tensor: OutputTensor) -> list[Any]:
    """Return elements for JSON, which has no NaN: null stands for it."""
    if isinstance(tensor.elements, list):
        return [item.decode() for item in tensor.elements]
    values = tensor.elements.ravel().tolist()
    return [None if math.isnan(value) else value for value in values]
