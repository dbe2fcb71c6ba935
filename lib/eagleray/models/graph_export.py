"""Exports the network of a package as an ONNX graph.

content = export_graph(package)         # bytes of an ONNX file, which `check_graph` accepts
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from eagleray.core.errors import InputError
from eagleray.models.attributes import num_features
from eagleray.models.graph import ATTRIBUTES_INPUT, IMAGES_INPUT
from eagleray.models.package import ModelPackage
from eagleray.models.tracing import describe_trace_fault

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["export_graph", "require_graph_outputs", "zero_inputs"]

# From 21 on ONNX Runtime gives the quantizers that it moves a type, contradicts it where it turns
# int8 into uint8, and refuses the graph that it has made.
_OPSET = 20


def export_graph(package: ModelPackage, *, with_outlier_score: bool = False) -> bytes:
    """Export a package's float network as ONNX, with batches of any size.

    Args:
        package: The model package.
        with_outlier_score: Whether an outlier score stays behind the logits, if there is one.

    Raises:
        InputError: If the network cannot be exported.
        PackageError: If the weights do not fit the network.
    """
    import torch

    from eagleray.models.network import ImageNetwork, graph_network

    module = package.build_network() if with_outlier_score else package.build_module()
    module.register_forward_pre_hook(_make_contiguous)
    network = graph_network(
        ImageNetwork(module, package.contract), tuple(package.task.network_outputs)
    ).eval()
    inputs = zero_inputs(package, 2)
    names = [IMAGES_INPUT, ATTRIBUTES_INPUT][: len(inputs)]
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                inputs,
                dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                input_names=names,
                output_names=list(package.task.network_outputs),
                opset_version=_OPSET,
                verbose=False,
            )
    except Exception as error:
        raise InputError(
            f"{package.manifest.architecture.name} cannot be exported as a graph "
            f"({describe_trace_fault(error)})."
        ) from error
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def require_graph_outputs(package: ModelPackage) -> None:
    """Refuse a float network with several outputs that its task does not name.

    Raises:
        InputError: If it has, or its only one is not of the task's shape; the message says so.
        PackageError: If the weights do not fit the network.
    """
    import torch

    from eagleray.models.network import ImageNetwork

    package.require_pytorch()
    task = package.task
    if task.output_names:
        return
    network = ImageNetwork(package.build_module(), package.contract).eval()
    with torch.inference_mode():
        outputs = network(*zero_inputs(package, 1))
    name = package.manifest.name
    if not isinstance(outputs, torch.Tensor):
        raise InputError(
            f"Model {name!r} has several outputs ({', '.join(outputs)}), and exports and quantized "
            f"models of the task {task.name} have one; serve it as it is by `eagleray serve`."
        )
    (shape,) = task.network_outputs.values()
    if outputs.ndim != 1 + len(shape):
        raise InputError(
            f"Model {name!r} has an output of {outputs.ndim - 1} dimensions for an image, and "
            f"exports and quantized models of the task {task.name} have {len(shape)}; serve it as "
            "it is by `eagleray serve`."
        )


def zero_inputs(package: ModelPackage, batch_size: int) -> tuple[Tensor, ...]:
    """Return the inputs of a forward pass, all zeros: images, and attributes if there are any."""
    import torch

    images = torch.zeros((batch_size, *package.contract.shape), dtype=torch.uint8)
    if not package.attributes:
        return (images,)
    return images, torch.zeros(batch_size, num_features(package.attributes))


def _make_contiguous(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put images into NCHW order in memory, which a graph does not have.

    Otherwise PyTorch traces a global average pool as a gather of strided elements.
    """
    images, *others = inputs
    return images.contiguous(), *others
