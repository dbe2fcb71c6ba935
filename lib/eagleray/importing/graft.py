"""Grafts the image contract and the form of the outputs onto the graph of another program.

The result takes and gives what the graph of every package does: `images`, uint8 (N, H, W, C), RGB
or gray, and `logits`, float32 (N, num_outputs), or what a decoder makes of a detector's outputs.
What is put before the network:

    (pixels / 255 - mean) / std, by the contract        Cast, Mul, Add
    the order of channels                                Gather
    the order of dimensions                              Transpose

and behind it, where it gives probabilities p of labels: log p, of which softmax makes p again, or
log(p / (1 - p)) for the sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eagleray.imaging import ImageContract
from eagleray.importing.decoders.base import Decoder, DetectorOutputs
from eagleray.importing.operators import Operators
from eagleray.models.graph import IMAGES_INPUT, LOGITS_OUTPUT

__all__ = [
    "TINY",
    "Behind",
    "NetworkInput",
    "behind_detector",
    "behind_scores",
    "find_input",
    "find_output",
    "find_scores",
    "graft",
    "output_shapes",
]

TINY = 1e-12
"""Smallest probability of a classifier that becomes a logit: below the smallest one of float32 that
is told from 0 in a sum with 1."""

_PREFIX = "eagleray_"
_RESULT_PREFIX = "result_"

Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class NetworkInput:
    """The image input of a network.

    Attributes:
        name: Its name.
        layout: The order of its dimensions.
        channels: Number of channels; None if the file leaves it open.
        size: (height, width); None where the file leaves it open.
        fixed_batch: Number of images of a pass; None if it may be any.
    """

    name: str
    layout: Layout
    channels: int | None
    size: tuple[int | None, int | None]
    fixed_batch: int | None


def find_input(model: Any, layout: Literal["auto", "nchw", "nhwc"]) -> NetworkInput:
    """Find the image input of a network.

    Raises:
        ValueError: If it has not one input of four dimensions of float32.
    """
    import onnx

    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in held]
    if len(inputs) != 1:
        raise ValueError(f"it has {_listed(inputs)} as inputs, where one of images is taken")
    (found,) = inputs
    lengths = _lengths(found)
    if len(lengths) != 4 or found.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise ValueError(
            f"its input {_shown(found)} is not float32 of four dimensions: images, channels, "
            "height and width"
        )
    batch, *others = lengths
    if layout == "auto":
        layouts: list[Layout] = ["nchw"] if others[0] in (1, 3) else []
        layouts += ["nhwc"] if others[2] in (1, 3) else []
        if len(layouts) != 1:
            raise ValueError(
                f"its input {_shown(found)} does not say which dimension is that of the channels; "
                "name --layout nchw or nhwc"
            )
        layout = layouts[0]
    if layout == "nchw":
        channels, height, width = others
    else:
        height, width, channels = others
    return NetworkInput(found.name, layout, channels, (height, width), batch)


def find_output(model: Any, num_outputs: int, *, fits_labels: bool) -> str:
    """Return the name of a network's only output.

    Args:
        model: The ONNX model.
        num_outputs: Number of values for an image that the task needs.
        fits_labels: Whether the task needs as many values as it has labels.

    Raises:
        ValueError: If it has several, or another number of values for an image.
    """
    outputs = list(model.graph.output)
    if len(outputs) != 1:
        raise ValueError(
            f"it has {_listed(outputs)} as outputs, where one of scores is taken; name --task "
            "detection, semantic, instance or panoptic for a network that says where things are"
        )
    (found,) = outputs
    lengths = _lengths(found)
    known = [length for length in lengths[1:] if length is not None]
    if len(known) == len(lengths) - 1 and len(lengths) and int(np.prod(known)) != num_outputs:
        raise ValueError(
            f"its output {_shown(found)} has {int(np.prod(known)):,} values for an image, and the "
            f"task needs {num_outputs:,}; "
            + ("name as many --labels as it has" if fits_labels else "name another --task")
        )
    return str(found.name)


def find_scores(model: Any, output: str) -> Literal["logits", "probabilities"]:
    """Return what a network gives, by the last operator that does more than reshape."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    node = made_by.get(output)
    while node is not None and node.op_type in ("Identity", "Reshape", "Flatten", "Squeeze"):
        node = made_by.get(node.input[0])
    is_probability = node is not None and node.op_type in ("Softmax", "Sigmoid", "HardSigmoid")
    return "probabilities" if is_probability else "logits"


Behind = Callable[[Operators, str], dict[str, tuple[str, tuple[int, ...]]]]
"""Appends operators behind the network, whose names have a prefix then; returns the tensor and the
shape for one image of each output by name."""


def graft(
    model: Any,
    network_input: NetworkInput,
    contract: ImageContract,
    *,
    reverses_channels: bool,
    behind: Behind,
    frees_batch: bool = True,
) -> None:
    """Change a graph in place into that of a package.

    Args:
        model: The ONNX model.
        network_input: Its input.
        contract: The image contract, in RGB.
        reverses_channels: Whether the network takes BGR.
        behind: Makes the outputs.
        frees_batch: Whether a network of a fixed number of images takes any number then.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    _rename_all(graph)
    batch: str | int = "batch"
    if network_input.fixed_batch is not None:
        if frees_batch:
            _free_batch(graph, network_input.fixed_batch)
        else:
            batch = network_input.fixed_batch
    source = _PREFIX + network_input.name
    before = _before(graph, source, network_input.layout, contract, reverses_channels)
    nodes = [*before, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    del graph.input[:]
    del graph.output[:]
    images = helper.make_tensor_value_info(
        IMAGES_INPUT, TensorProto.UINT8, [batch, *contract.shape]
    )
    graph.input.append(images)
    operators = Operators(model, _RESULT_PREFIX)
    for name, (tensor, shape) in behind(operators, _PREFIX).items():
        operators.add("Identity", tensor, result=name)
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])
        graph.output.append(output)
    graph.doc_string = ""
    model.doc_string = ""
    del model.metadata_props[:]


def behind_scores(
    output: str, scores: Literal["logits", "softmax", "sigmoid"], num_outputs: int
) -> Behind:
    """Return what makes logits (N, num_outputs) of a network's output.

    Args:
        output: Name of the output.
        scores: Whether it has logits, or probabilities of a softmax or of a sigmoid.
        num_outputs: Number of values for an image.
    """

    def append(operators: Operators, prefix: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        result = operators.reshape(prefix + output, num_outputs)
        if scores == "sigmoid":
            result = operators.logits(result, tiny=TINY)
        elif scores == "softmax":
            positive = operators.add("Max", result, operators.constant(TINY))
            result = operators.add("Log", positive)
        return {LOGITS_OUTPUT: (result, (num_outputs,))}

    return append


def behind_detector(source: DetectorOutputs, decoder: Decoder) -> Behind:
    """Return what makes boxes and logits of a detector's outputs."""

    def append(operators: Operators, prefix: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        found = decoder(replace(source, prefix=prefix), operators)
        return {
            "boxes": (found.boxes, (found.count, 4)),
            "logits": (found.logits, (found.count, source.num_labels)),
        }

    return append


def output_shapes(
    model: Any, network_input: NetworkInput, size: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each output for one image of a size, by name.

    Raises:
        ValueError: If a length is not known before the network runs.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (images,) = (one for one in copy.graph.input if one.name == network_input.name)
    channels = network_input.channels or 3
    lengths = (channels, *size) if network_input.layout == "nchw" else (*size, channels)
    first = network_input.fixed_batch or 1
    for dimension, length in zip(images.type.tensor_type.shape.dim, (first, *lengths), strict=True):
        dimension.dim_value = length
    del copy.graph.value_info[:]
    for output in copy.graph.output:  # what a file says of its outputs may be open, or wrong
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        text = (str(error).splitlines() or ["it is not valid"])[0][:200]
        raise ValueError(f"its shapes do not fit each other ({text})") from None
    shapes = {}
    for output in inferred.graph.output:
        found = _lengths(output)
        if not found or None in found:
            raise ValueError(
                f"the shape of its output {_shown(output)} is not known before it runs; export it "
                "again for images of one size"
            )
        shapes[output.name] = tuple(one for one in found if one is not None)
    return shapes


def _rename_all(graph: Any) -> None:
    """Give every tensor a name that none of ours can be."""
    for tensor in graph.initializer:
        tensor.name = _PREFIX + tensor.name
    for sparse in graph.sparse_initializer:
        sparse.values.name = _PREFIX + sparse.values.name
    for node in graph.node:
        for names in (node.input, node.output):
            renamed = [_PREFIX + name if name else "" for name in names]
            del names[:]
            names.extend(renamed)
    del graph.quantization_annotation[:]


def _free_batch(graph: Any, batch: int) -> None:
    """Let a network of a fixed number of images take any number.

    A shape that is written into the graph begins with that number: 0 stands for what comes in.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    for index, node in enumerate(list(graph.node)):
        shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None:
            continue
        lengths = numpy_helper.to_array(shape).copy()
        copies = any(one.name == "allowzero" and one.i for one in node.attribute)
        if lengths.size == 0 or lengths.flat[0] != batch or copies:
            continue
        lengths.flat[0] = 0
        name = f"{IMAGES_INPUT}_shape_{index}"
        graph.initializer.append(numpy_helper.from_array(lengths, name))
        node.input[1] = name


def _before(
    graph: Any, source: str, layout: Layout, contract: ImageContract, reverses_channels: bool
) -> list[Any]:
    """Return the operators that make the network's input of images."""
    from onnx import TensorProto, helper

    std, mean = np.asarray(contract.std), np.asarray(contract.mean)
    _add(graph, "images_scale", (1 / (255 * std)).astype(np.float32))
    _add(graph, "images_offset", (-mean / std).astype(np.float32))
    nodes = [
        helper.make_node("Cast", [IMAGES_INPUT], ["images_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["images_float", "images_scale"], ["images_scaled"]),
        helper.make_node("Add", ["images_scaled", "images_offset"], ["images_normalized"]),
    ]
    last = "images_normalized"
    if reverses_channels:
        _add(graph, "images_order", np.arange(contract.channels - 1, -1, -1, dtype=np.int64))
        nodes.append(helper.make_node("Gather", [last, "images_order"], ["images_bgr"], axis=3))
        last = "images_bgr"
    if layout == "nchw":
        nodes.append(helper.make_node("Transpose", [last], [source], perm=[0, 3, 1, 2]))
    else:
        nodes.append(helper.make_node("Identity", [last], [source]))
    return nodes


def _add(graph: Any, name: str, values: npt.NDArray[Any]) -> None:
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(values, name))


def _lengths(value: Any) -> list[int | None]:
    """Return the length of each dimension; None for one that is left open."""
    return [
        dimension.dim_value if dimension.dim_value > 0 else None
        for dimension in value.type.tensor_type.shape.dim
    ]


def _shown(value: Any) -> str:
    lengths = ", ".join("?" if one is None else str(one) for one in _lengths(value))
    return f"{value.name[:100]!r}" + (f" ({lengths})" if lengths else "")


def _listed(values: list[Any]) -> str:
    return ", ".join(_shown(one) for one in values[:8]) or "nothing"
