"""Makes the network that is exported: uint8 images in, probabilities or values out.

Normalisation is part of it, as in `ImageNetwork`, and so is the task's activation with its
temperature: whoever runs the export needs to know neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from eagleray.core.errors import InputError
from eagleray.exports.base import IMAGES, output_names
from eagleray.models.graph_export import export_graph
from eagleray.models.network import ImageNetwork
from eagleray.models.package import ModelPackage
from eagleray.models.tracing import describe_trace_fault
from eagleray.tasks import NetworkOutput, Task
from eagleray.tasks.base import only_tensor

__all__ = ["ExportedNetwork", "export_program", "onnx_graph"]

_PREFIX = "task_"


class ExportedNetwork(nn.Module):
    """A package's network with normalisation and activation.

    Args:
        package: The package, with a float network.
        planar: Whether images are float32 (N, C, H, W) of 0 to 255, and not uint8 (N, H, W, C).
    """

    def __init__(self, package: ModelPackage, *, planar: bool = False) -> None:
        super().__init__()
        self.network = ImageNetwork(package.build_module(), package.contract)
        self.task = package.task
        self.planar = planar

    def forward(self, images: Tensor) -> NetworkOutput:
        """Map images to activated outputs (N, num_values), float32, or several (N, …) by name."""
        network = self.network
        if self.planar:
            logits = network.module(images * network.scale + network.offset)
        else:
            logits = network(images)
        return self.task.exported_outputs(logits)


def export_program(package: ModelPackage, *, planar: bool = False) -> Any:
    """Trace a package's network for one image at a time, as an `ExportedProgram`.

    Raises:
        InputError: If the network cannot be traced.
    """
    network = ExportedNetwork(package, planar=planar).eval()
    height, width, channels = package.contract.shape
    image = torch.zeros((1, height, width, channels), dtype=torch.uint8)
    inputs = (torch.zeros(1, channels, height, width) if planar else image,)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(network, inputs)
    except Exception as error:
        name = package.manifest.architecture.name
        fault = describe_trace_fault(error)
        raise InputError(f"{name} cannot be exported as a graph ({fault}).") from error


def onnx_graph(package: ModelPackage) -> Any:
    """Return a package's network as an ONNX model for batches of any size.

    The graph of a quantized package is its own, with the activation behind it.

    Raises:
        InputError: If the network cannot be exported.
    """
    graph = onnx.load_from_string(package.graph or export_graph(package))
    opset = next(one.version for one in graph.opset_import if one.domain in ("", "ai.onnx"))
    shapes, names = _output_shapes(graph), output_names(package)
    kept = [name for name in names if name in shapes]  # as the network gives them
    activated = {name: shape for name, shape in shapes.items() if name not in kept}
    made = [name for name in names if name not in kept]
    activation = _activation_graph(package.task, opset, activated, made)
    activation.ir_version = graph.ir_version
    merged = onnx.compose.merge_models(
        graph, activation, io_map=[(name, name) for name in activated], prefix2=_PREFIX
    )
    return _named(merged, names, dict(zip(_result_names(made), made, strict=True)))


def _output_shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each output for one image by name."""
    return {
        output.name: tuple(one.dim_value for one in output.type.tensor_type.shape.dim)[1:]
        for output in graph.graph.output
    }


class _Activation(nn.Module):
    """Makes the outputs of an export of some of a network's, whose other ones it needs not."""

    def __init__(self, task: Task, names: Sequence[str], results: Sequence[str]) -> None:
        super().__init__()
        self.task, self.names, self.results = task, tuple(names), tuple(results)
        self.others = dict.fromkeys(task.network_outputs, torch.zeros(()))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if len(self.others) == 1:
            return (only_tensor(self.task.exported_outputs(tensors[0])),)
        given = {**self.others, **dict(zip(self.names, tensors, strict=True))}
        outputs = self.task.exported_outputs(given)
        assert not isinstance(outputs, Tensor)
        return tuple(outputs[name] for name in self.results)


def _result_names(results: Sequence[str]) -> list[str]:
    """Return the names of an activation's outputs in the merged graph."""
    return [f"{_PREFIX}outputs_{index}" for index in range(len(results))]


def _activation_graph(
    task: Task, opset: int, shapes: Mapping[str, tuple[int, ...]], results: Sequence[str]
) -> Any:
    """Return the graph from some of a network's outputs to those of the export."""
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Activation(task, list(shapes), results),
            tuple(torch.zeros(2, *shape) for shape in shapes.values()),
            dynamo=True,
            dynamic_shapes=(tuple({0: batch} for _ in shapes),),
            input_names=list(shapes),
            output_names=[name.removeprefix(_PREFIX) for name in _result_names(results)],
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _named(model: Any, names: Sequence[str], made: Mapping[str, str]) -> Any:
    """Name the inputs and the outputs as the README does, in its order.

    Args:
        model: The ONNX model.
        names: Names of the outputs.
        made: The name of each output by that of its tensor, where it is another.
    """
    graph = model.graph
    assert [one.name for one in graph.input] == [IMAGES]
    # The network may have a tensor that is called as an output of the export.
    renamed = {**{name: f"network_{name}" for name in made.values()}, **made}
    for node in graph.node:
        for found in (node.input, node.output):
            found[:] = [renamed.get(name, name) for name in found]
    for value in (*graph.value_info, *graph.output):
        value.name = renamed.get(value.name, value.name)
    outputs = sorted(graph.output, key=lambda one: names.index(one.name))
    del graph.output[:]
    graph.output.extend(outputs)
    onnx.checker.check_model(model)
    return model
