"""Makes the output tensors of a response, and encodes them."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.models.package import ModelManifest
from eagleray.serving.protocol.requests import InferRequest, RequestedOutput
from eagleray.tasks import Outcome, Task
from eagleray.tasks.tensors import NamedTensor, TensorSpec, text_tensor

__all__ = ["OutputTensor", "model_metadata", "select_outputs", "to_raw", "to_rest_response"]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output tensor.

    Attributes:
        name: Name of the tensor.
        datatype: Datatype of the protocol.
        shape: Shape of the tensor.
        elements: Strings or files as a list of bytes, numbers as an array.
        binary: Whether the REST response has the elements as raw bytes.
        has_files: Whether the elements are files, which JSON has in base64.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: list[bytes] | npt.NDArray[Any]
    binary: bool = False
    has_files: bool = False


def model_metadata(name: str, versions: Sequence[int], manifest: ModelManifest) -> dict[str, Any]:
    """Return the metadata of a model."""
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


def select_outputs(
    outcomes: Sequence[Outcome], task: Task, request: InferRequest
) -> list[OutputTensor]:
    """Return the outputs that a request selects; all if it selects none.

    Raises:
        InputError: If the model has no such output.
    """
    all_outputs = _all_outputs(outcomes, task)
    given = {tensor.name: tensor for tensor in all_outputs}
    requested = request.outputs or [RequestedOutput(name) for name in given]
    outputs = []
    for item in requested:
        if item.name not in given:
            raise InputError(
                f"There is no output {item.name}, or it is requested twice; there are "
                f"{', '.join(tensor.name for tensor in all_outputs)}."
            )
        tensor = given.pop(item.name)  # repetitions would make the response unbounded
        if item.classes:
            tensor = _classes(tensor, task, item.classes)
        binary = item.binary or request.all_binary
        outputs.append(
            OutputTensor(
                tensor.name,
                tensor.datatype,
                tensor.shape,
                tensor.elements,
                binary,
                tensor.has_files,
            )
        )
    return outputs


def _all_outputs(outcomes: Sequence[Outcome], task: Task) -> list[NamedTensor]:
    status = [
        "ok" if outcome.failure is None else outcome.failure.reason.value for outcome in outcomes
    ]
    tensors = task.tensors([outcome.prediction for outcome in outcomes])
    return [text_tensor("status", status), *tensors]


def _classes(tensor: NamedTensor, task: Task, count: int) -> NamedTensor:
    """Return the most probable labels of each image as `score:index:label`."""
    if tensor.name != "probabilities" or isinstance(tensor.elements, list):
        raise InputError("classification is only for the output probabilities.")
    count = min(count, len(task.labels))
    order = np.argsort(-tensor.elements, axis=1, kind="stable")[:, :count]
    elements = [
        f"{row[index]:f}:{index}:{task.labels[index]}".encode()
        for row, best in zip(tensor.elements, order, strict=True)
        for index in best
    ]
    return NamedTensor(tensor.name, "BYTES", (len(order), count), elements)


def to_rest_response(
    outputs: Sequence[OutputTensor], *, model: str, version: int, request_id: str, parameters: Any
) -> tuple[bytes, int | None]:
    """Encode a response of the REST protocol.

    Returns:
        The body, and the length of its JSON if raw tensors follow, otherwise None.
    """
    described, raw = [], []
    for tensor in outputs:
        item = _describe(tensor.name, tensor.datatype, list(tensor.shape))
        if tensor.binary:
            content = to_raw(tensor)
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


def to_raw(tensor: OutputTensor) -> bytes:
    """Return the raw bytes of an output."""
    if isinstance(tensor.elements, list):
        return b"".join(struct.pack("<I", len(item)) + item for item in tensor.elements)
    return np.ascontiguousarray(tensor.elements).tobytes()


def _json_data(tensor: OutputTensor) -> list[Any]:
    """Return elements for JSON: files in base64, and null for NaN, which JSON lacks."""
    if isinstance(tensor.elements, list):
        if tensor.has_files:
            return [base64.b64encode(item).decode() for item in tensor.elements]
        return [item.decode() for item in tensor.elements]
    values = tensor.elements.ravel().tolist()
    return [None if math.isnan(value) else value for value in values]
