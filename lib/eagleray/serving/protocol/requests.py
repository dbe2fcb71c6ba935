"""Requests of the protocol, parsed from REST with its binary extension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.serving.protocol.elements import parse_json_elements, parse_raw_elements
from eagleray.serving.protocol.json_body import MAX_NUMBERS, read_json

__all__ = ["InferRequest", "InputTensor", "RequestedOutput", "parse_rest_request"]

_MAX_ELEMENTS = 2**31


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input tensor.

    Attributes:
        name: `image`, `pixels` or the name of an attribute.
        datatype: Datatype of the protocol.
        shape: Shape of the tensor.
        elements: Strings as a list of bytes, numbers as a flat array.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: list[bytes] | npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a request selects.

    Attributes:
        name: Name of the tensor.
        binary: Whether the REST response has the elements as raw bytes.
        classes: Number of the most probable labels to return as `score:index:label`; 0 for the
            tensor itself.
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request of the protocol, from REST or gRPC.

    Attributes:
        id: Id from the caller; may be empty.
        inputs: Input tensors in order.
        outputs: Selected outputs; empty for all.
        all_binary: Whether the REST response has all outputs as raw bytes.
        parameters: Parameters of the request.
    """

    id: str
    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput] = ()
    all_binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


def parse_rest_request(body: bytes, header_length: int | None) -> InferRequest:
    """Parse a request of the REST protocol.

    Args:
        body: JSON, followed by raw tensors.
        header_length: Number of bytes of the JSON; None for the whole body.

    Raises:
        InputError: If the body is malformed.
    """
    length = len(body) if header_length is None else header_length
    if not 0 <= length <= len(body):
        raise InputError(
            f"Inference-Header-Content-Length is {length}, but the body has {len(body)} bytes."
        )
    head = read_json(body[:length], max_values=MAX_NUMBERS)
    if not isinstance(head, dict):
        raise InputError("The request must be a JSON object.")
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
        raise InputError("parameters must be a JSON object.")
    return InferRequest(
        id=str(head.get("id") or ""),
        inputs=inputs,
        outputs=[_requested_output(item) for item in _list_of_objects(head, "outputs")],
        all_binary=parameters.get("binary_data_output") is True,
        parameters=parameters,
    )


def _list_of_objects(head: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = head.get(name) or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InputError(f"{name} must be a list of JSON objects.")
    return found


def _requested_output(item: dict[str, Any]) -> RequestedOutput:
    parameters = item.get("parameters") or {}
    classes = parameters.get("classification", 0) if isinstance(parameters, dict) else None
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
        raise InputError("classification must be a number of classes.")
    return RequestedOutput(str(item.get("name")), parameters.get("binary_data") is True, classes)


def _input(item: dict[str, Any], rest: memoryview) -> tuple[InputTensor, int]:
    """Parse an input; return it and the number of its raw bytes."""
    name, datatype = str(item.get("name")), str(item.get("datatype"))
    shape = _shape(name, item.get("shape"))
    parameters = item.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise InputError(f"Input {name}: the body does not hold its {size} raw bytes.")
        return InputTensor(
            name, datatype, shape, parse_raw_elements(name, datatype, rest[:size])
        ), size
    return InputTensor(
        name, datatype, shape, parse_json_elements(name, datatype, item.get("data"))
    ), 0


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    good = isinstance(shape, list) and 0 < len(shape) <= 8
    if not good or not all(type(side) is int and 0 <= side < _MAX_ELEMENTS for side in shape):
        raise InputError(f"Input {name}: shape must be a list of whole numbers.")
    return tuple(shape)
