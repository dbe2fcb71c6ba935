"""Checks the ONNX graph of a package before anything runs it.

    check_graph("digits/model.onnx", content, manifest)    # PackageError

A graph takes what `ImageNetwork` takes, uint8 images (N, H, W, C) and float32 attributes (N, A) if
the model has any, so that the normalisation of the contract is part of it. It returns the outputs
that the task names: `logits` (N, num_outputs), or several, such as boxes and logits of a detector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from eagleray.core.errors import PackageError
from eagleray.models.attributes import num_features
from eagleray.models.manifest import ModelManifest

__all__ = [
    "ATTRIBUTES_INPUT",
    "IMAGES_INPUT",
    "LOGITS_OUTPUT",
    "check_graph",
    "parse_foreign_graph",
    "takes_one_image",
]

IMAGES_INPUT = "images"
ATTRIBUTES_INPUT = "attributes"
LOGITS_OUTPUT = "logits"

_MAX_ELEMENTS = 2**28  # of one tensor, for one image
Shape = tuple[int | None, ...]
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def parse_foreign_graph(content: bytes) -> Any:
    """Parse an ONNX file of another program, and refuse what is more than plain operators.

    Imports of operator sets that no operator uses are dropped.

    Args:
        content: The file.

    Raises:
        ValueError: If it is refused; the message says why.
    """
    model = _parse(content)
    if not model.graph.node:
        raise ValueError("it is not an ONNX file, or has no operators")
    used = {node.domain for node in model.graph.node}
    kept = [one for one in model.opset_import if one.domain in {"", "ai.onnx", *used}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    _require_plain(model)
    return model


def takes_one_image(content: bytes) -> bool:
    """Whether the graph of a package takes one image at a time, as some of other programs do."""
    lengths = {
        one.name: one.type.tensor_type.shape.dim[0].dim_value
        for one in _parse(content).graph.input
        if one.name == IMAGES_INPUT
    }
    return bool(lengths[IMAGES_INPUT] == 1)


def check_graph(where: str, content: bytes, manifest: ModelManifest) -> None:
    """Refuse a graph that is not plain ONNX, or has other inputs and outputs than the model.

    Args:
        where: Name of the file, for messages.
        content: The file.
        manifest: Manifest of the package.

    Raises:
        PackageError: If the graph is refused.
    """
    try:
        model = _parse(content)
        _require_plain(model)
        _require_fits(model.graph, manifest)
        _require_bounded(model)
    except ValueError as error:
        raise PackageError(f"{where} is refused: {error}.") from None


def _parse(content: bytes) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.ModelProto.FromString(content)
    except DecodeError:
        raise ValueError("it is not an ONNX file") from None


def _require_plain(model: Any) -> None:
    """Refuse code of others, control flow, and data outside of the file."""
    import onnx

    foreign = [one.domain for one in model.opset_import if one.domain not in ("", "ai.onnx")]
    if foreign:
        raise ValueError(f"it uses operators of {foreign[0][:100]!r}")
    if model.functions or model.training_info:
        raise ValueError("it has functions or training information")
    for node in model.graph.node:
        if node.op_type in _CONTROL_FLOW:
            raise ValueError(f"it has control flow ({node.op_type})")
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(f"it uses operators of {node.domain[:100]!r}")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ValueError(f"the data of {tensor.name[:100]!r} are outside of the file")


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise ValueError(f"{node.op_type} contains another graph")
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _require_fits(graph: Any, manifest: ModelManifest) -> None:
    """Compare inputs and outputs with those that the manifest describes."""
    import onnx

    contract = manifest.contract
    expected: dict[str, tuple[int, Shape]] = {
        IMAGES_INPUT: (onnx.TensorProto.UINT8, contract.shape)
    }
    if manifest.attributes:
        length = num_features(manifest.attributes)
        expected[ATTRIBUTES_INPUT] = (onnx.TensorProto.FLOAT, (length,))
    held = {tensor.name for tensor in graph.initializer}
    _require_same("input", [one for one in graph.input if one.name not in held], expected)
    outputs: dict[str, tuple[int, Shape]] = {
        name: (onnx.TensorProto.FLOAT, shape)
        for name, shape in manifest.task.network_outputs.items()
    }
    _require_same("output", graph.output, outputs)


def _require_same(kind: str, values: Any, expected: Mapping[str, tuple[int, Shape]]) -> None:
    found = {one.name: one.type.tensor_type for one in values}
    if found.keys() != expected.keys():
        names = ", ".join(sorted(found))[:200]
        raise ValueError(f"its {kind}s are {names}, not {', '.join(sorted(expected))}")
    for name, (kind_of_number, shape) in expected.items():
        tensor = found[name]
        lengths = [dimension.dim_value for dimension in tensor.shape.dim][1:]
        fits = len(lengths) == len(shape) and all(
            wanted in (None, length) for length, wanted in zip(lengths, shape, strict=True)
        )
        if tensor.elem_type != kind_of_number or not fits:
            raise ValueError(f"its {kind} {name!r} is not of the shape and type of the model's")


def _require_bounded(model: Any) -> None:
    """Refuse a graph in which one image leads to a tensor of impossible size."""
    import onnx

    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        text = (str(error).splitlines() or ["it is not valid"])[0][:200]
        raise ValueError(f"its shapes do not fit each other ({text})") from None
    for value in inferred.graph.value_info:
        elements = math.prod(
            max(1, dimension.dim_value) for dimension in value.type.tensor_type.shape.dim
        )
        if elements > _MAX_ELEMENTS:
            raise ValueError(
                f"{value.name[:100]!r} has {elements:,} numbers, {_MAX_ELEMENTS:,} is the limit"
            )
