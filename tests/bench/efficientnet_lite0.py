"""Makes a model package of EfficientNet-Lite0 with real ImageNet weights, from an ONNX file.

    python -m tests.bench.efficientnet_lite0 efficientnet_lite0.onnx packages/efficientnet-lite0
    python -m tests.bench.efficientnet_lite0 efficientnet_lite0.onnx packages/parent --photos FOLDER

The file's batch norms are folded into its convolutions. timm's network takes the weights in order,
with batch norms that change nothing. To be trained further, it needs norms that know what they
normalise: with photographs they are measured, and the network's function stays what it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from eagleray.imaging import FORMATS, ImageContract, decode
from eagleray.imaging.contract import ShortestSide
from eagleray.models.architectures import architecture_for, imagenet_labels
from eagleray.models.building import build
from eagleray.models.network import ImageNetwork
from eagleray.models.package import Lineage, ModelPackage, create_package, write_package
from eagleray.tasks import Multiclass
from tests.bench.folders import photos_of

NAME = "timm/tf_efficientnet_lite0"
NUM_MEASURED = 64


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


def unfold_norms(module: nn.Module, photos: Sequence[Path]) -> None:
    """Give each batch norm the statistics of photographs, and weights that undo them."""

    def measure(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)

    norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    pixels = np.stack([decode(photo.read_bytes(), contract()).pixels for photo in photos])
    with torch.no_grad():
        ImageNetwork(module, contract())(torch.from_numpy(pixels))
    for hook in hooks:
        hook.remove()


def make_package(
    location: str, golden_images: tuple[bytes, ...] = (), *, photos: Sequence[Path] = ()
) -> ModelPackage:
    """Return the package of the weights in an ONNX file; with photographs, one to train on."""
    labels = tuple(imagenet_labels())
    architecture = architecture_for(NAME, contract(), len(labels))
    module = build(architecture).eval()
    load_weights(module, location)
    if photos:
        unfold_norms(module, photos)
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
    parser.add_argument("--photos", type=Path, help="photographs to measure batch norms on")
    arguments = parser.parse_args()
    photos = photos_of(arguments.photos)[:NUM_MEASURED] if arguments.photos else []
    write_package(make_package(arguments.onnx, photos=photos), arguments.folder)


if __name__ == "__main__":
    main()
