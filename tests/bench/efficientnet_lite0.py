"""Makes a model package of EfficientNet-Lite0 with real ImageNet weights, from an ONNX file.

python -m tests.bench.efficientnet_lite0 efficientnet_lite0.onnx packages/efficientnet-lite0

The file's batch norms are folded into its convolutions. timm's network takes the weights in order,
with batch norms that change nothing.
"""

from __future__ import annotations

import argparse

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from eagleray.imaging import FORMATS, ImageContract
from eagleray.imaging.contract import ShortestSide
from eagleray.models.architectures import architecture_for, imagenet_labels
from eagleray.models.building import build
from eagleray.models.package import Lineage, ModelPackage, create_package, write_package
from eagleray.tasks import Multiclass

NAME = "timm/tf_efficientnet_lite0"


def contract() -> ImageContract:
    """Return the image contract of the weights: (pixel - 127) / 128, in RGB."""
    return ImageContract(
        formats=FORMATS,
        resize=ShortestSide(size=256),
        crop=(224, 224),
        resampler="pillow_bicubic",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )


def load_weights(module: nn.Module, location: str) -> None:
    """Copy the weights of the ONNX file into timm's network, layer by layer."""
    graph = onnx.load(location).graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weighted = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    layers = [one for one in module.modules() if isinstance(one, (nn.Conv2d, nn.Linear))]
    norms = iter(one for one in module.modules() if isinstance(one, nn.BatchNorm2d))
    for node, layer in zip(weighted, layers, strict=True):
        weight, bias = (torch.from_numpy(held[name].copy()) for name in node.input[1:3])
        with torch.no_grad():
            # A Gemm may hold its matrix transposed.
            layer.weight.copy_(weight if weight.shape == layer.weight.shape else weight.T)
            if layer.bias is not None:
                layer.bias.copy_(bias)
                continue
            norm = next(norms)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.weight.fill_(1.0)
            norm.bias.copy_(bias)
            norm.running_mean.zero_()
            norm.running_var.fill_(1.0 - norm.eps)


def make_package(location: str, golden_images: tuple[bytes, ...] = ()) -> ModelPackage:
    """Return the package of the weights in an ONNX file."""
    labels = tuple(imagenet_labels())
    architecture = architecture_for(NAME, contract(), len(labels))
    module = build(architecture).eval()
    load_weights(module, location)
    return create_package(
        name="efficientnet-lite0",
        task=Multiclass(labels=labels),
        architecture=architecture,
        contract=contract(),
        module=module.eval(),
        lineage=Lineage.now(note="ImageNet weights of EfficientNet-Lite0"),
        golden_images=golden_images,
    )


def main() -> None:
    """Write the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("onnx", help="efficientnet_lite0.onnx")
    parser.add_argument("folder", help="new folder of the package")
    arguments = parser.parse_args()
    write_package(make_package(arguments.onnx), arguments.folder)


if __name__ == "__main__":
    main()
