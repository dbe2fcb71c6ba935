"""Makes the network that is exported: uint8 images in, probabilities or values out.

Normalisation is part of it, as in `ImageNetwork`, and so is the task's activation with its
temperature: whoever runs the export needs to know neither.
"""

from __future__ import annotations

import warnings
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from eagleray.core.errors import InputError
from eagleray.exports.base import IMAGES, output_name
from eagleray.models.graph import LOGITS_OUTPUT, export_graph
from eagleray.models.network import ImageNetwork
from eagleray.models.package import ModelPackage
from eagleray.tasks import Task

__all__ = ["ExportedNetwork", "export_program", "onnx_graph"]


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

    def forward(self, images: Tensor) -> Tensor:
        """Map images to activated outputs (N, num_values), float32."""
        network = self.network
        if self.planar:
            logits = network.module(images * network.scale + network.offset)
        else:
            logits = network(images)
        return self.task.activate(logits)


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
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{name} cannot be exported as a graph ({text}).") from error


def onnx_graph(package: ModelPackage) -> Any:
    """Return a package's network as an ONNX model for batches of any size.

    The graph of a quantized package is its own, with the activation behind it.

    Raises:
        InputError: If the network cannot be exported.
    """
    graph = onnx.load_from_string(package.graph or export_graph(package))
    opset = next(one.version for one in graph.opset_import if one.domain in ("", "ai.onnx"))
    activation = _activation_graph(package.task, opset)
    activation.ir_version = graph.ir_version
    merged = onnx.compose.merge_models(
        graph, activation, io_map=[(LOGITS_OUTPUT, LOGITS_OUTPUT)], prefix2="task_"
    )
    return _named(merged, package)


class _Activation(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, logits: Tensor) -> Tensor:
        return self.task.activate(logits)


def _activation_graph(task: Task, opset: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Activation(task),
            (torch.zeros(2, task.num_outputs),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=[LOGITS_OUTPUT],
            output_names=["outputs"],
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _named(model: Any, package: ModelPackage) -> Any:
    """Name the inputs and the output as the README does."""
    assert [one.name for one in model.graph.input] == [IMAGES]
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = [
            output_name(package) if name == output.name else name for name in node.output
        ]
        node.input[:] = [
            output_name(package) if name == output.name else name for name in node.input
        ]
    output.name = output_name(package)
    onnx.checker.check_model(model)
    return model
