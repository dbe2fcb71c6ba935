"""Finds the quantized layers of an ONNX graph, and restores some of them to float32."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

__all__ = ["quantized_layers", "restore_layers"]

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_DEQUANTIZE = "DequantizeLinear"


def quantized_layers(quantized: Any, original: Any) -> dict[str, str]:
    """Return the layers with weights that were quantized.

    Args:
        quantized: The `onnx.ModelProto` that was made from `original`.
        original: The `onnx.ModelProto` in float32.

    Returns:
        The name of the layer in the PyTorch module for each name of a node, in graph order.
    """
    held = {tensor.name for tensor in original.graph.initializer}
    producers = {name: node for node in quantized.graph.node for name in node.output}
    now = {node.name: node for node in quantized.graph.node}
    found = {}
    for node in original.graph.node:
        if node.op_type not in _WEIGHTED or node.input[1] not in held or node.name not in now:
            continue
        source = producers.get(now[node.name].input[1])
        if source is not None and source.op_type == _DEQUANTIZE:
            name = node.input[1] if node.input[1].endswith(".weight") else node.name
            path = name.removeprefix("network.")  # around a network with several outputs
            found[node.name] = path.removeprefix("module.").removesuffix(".weight")
    return found


def restore_layers(quantized: Any, original: Any, nodes: Collection[str]) -> Any:
    """Return a quantized graph in which some layers are as in the original.

    Args:
        quantized: The `onnx.ModelProto` that was made from `original`.
        original: The `onnx.ModelProto` in float32.
        nodes: Names of the layers' nodes, keys of `quantized_layers`.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    before = {node.name: node for node in original.graph.node if node.name in nodes}
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    added: set[str] = set()
    for node in model.graph.node:
        if node.name not in before:
            continue
        for position, name in enumerate(before[node.name].input):
            if name not in weights:
                node.input[position] = name
                continue
            # Under a name of its own: the quantization may have corrected a bias in place.
            copied = f"{name}.float"
            node.input[position] = copied
            if copied not in added:
                added.add(copied)
                model.graph.initializer.add().CopyFrom(weights[name])
                model.graph.initializer[-1].name = copied
    _remove_unused(model.graph)
    return model


def _remove_unused(graph: Any) -> None:
    """Remove the nodes and the tensors that no output depends on."""
    used = {output.name for output in graph.output}
    for node in reversed(graph.node):  # a node comes after those that it depends on
        if used.intersection(node.output):
            used.update(node.input)
    _keep(graph.node, (one for one in graph.node if used.intersection(one.output)))
    _keep(graph.initializer, (one for one in graph.initializer if one.name in used))


def _keep(field: Any, kept: Iterator[Any]) -> None:
    remaining = list(kept)
    del field[:]
    field.extend(remaining)
