"""Writes the random weights that all contenders share: a package, and its weights file.

    python -m tests.bench.peers.weights PHOTOS FOLDER [CONTRACT]

The package holds the weights as `model.safetensors` under torchvision's own names, so the peers
load the very file that we do. A random network gives nearly every photograph the same label, and
agreement on it would be meaningless. So the mean of the logits over the photographs is subtracted
from the last layer's bias, which leaves what distinguishes one photograph from another, and the
logits are scaled to spread as those of trained networks do. Batch normalisations get the statistics
of the photographs, as in training: with their initial ones the activations of a deep network grow
from layer to layer, and rounding decides.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eagleray.imaging import decode
from eagleray.models.architectures import default_contract
from eagleray.models.network import ImageNetwork
from eagleray.models.package import Lineage, create_package, write_package
from eagleray.registry.references import load_model

__all__ = ["REFERENCE_CONTRACT", "SharedWeights", "write_weights"]

REFERENCE_CONTRACT = "torchvision-reference"
_NETWORK = "resnet18"
_SPREAD = 3.0  # standard deviation of the logits, about that of trained networks
_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """The location of the weights.

    Attributes:
        name: Name of the model.
        package: Folder of the model package.
        file: Safetensors file of the same weights, inside it.
    """

    name: str
    package: Path
    file: Path


def write_weights(
    photos: Sequence[Path],
    folder: Path,
    contract: str = REFERENCE_CONTRACT,
    network: str = _NETWORK,
) -> SharedWeights:
    """Write a package of `random:NETWORK`, centred on some photographs.

    Args:
        photos: Readable photographs.
        folder: To be made.
        contract: Named contract that the package prepares images by; the peers use torchvision's
            reference transform whatever it is.
        network: Architecture.
    """
    random = load_model(f"random:{network}").package
    module = random.build_module()
    with torch.no_grad():
        weight, bias = list(module.parameters())[-2:]
        if not weight.any():  # vision transformers begin with a last layer of zeros
            nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(0))
        _measure_statistics(module, photos, network)
        logits = _logits(module, photos, network)
        bias.sub_(logits.mean(dim=0))
        for parameter in (weight, bias):
            parameter.mul_(_SPREAD / (logits - logits.mean(dim=0)).std())
    package = create_package(
        name=random.manifest.name,
        task=random.task,
        architecture=random.manifest.architecture,
        contract=default_contract(network, contract),
        module=module,
        lineage=Lineage.now(note=f"random weights, seed 0, centred on {len(photos)} photographs"),
    )
    write_package(package, str(folder))
    return SharedWeights(random.manifest.name, folder, folder / "model.safetensors")


def _measure_statistics(module: nn.Module, photos: Sequence[Path], name: str) -> None:
    """Set the statistics of all batch normalisations to averages over the photographs."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True  # averages over all batches
    _logits(module, photos, name)
    for norm in norms:
        norm.momentum, norm.training = nn.BatchNorm2d(1).momentum, False


def _logits(module: nn.Module, photos: Sequence[Path], name: str) -> torch.Tensor:
    contract = default_contract(name, REFERENCE_CONTRACT)
    network = ImageNetwork(module, contract)
    logits = []
    for start in range(0, len(photos), _BATCH_SIZE):
        batch = photos[start : start + _BATCH_SIZE]
        pixels = np.stack([decode(photo.read_bytes(), contract).pixels for photo in batch])
        with torch.inference_mode():
            logits.append(network(torch.from_numpy(pixels)))
    return torch.cat(logits)


if __name__ == "__main__":
    photos_of_folder = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_file())
    print(write_weights(photos_of_folder, Path(sys.argv[2]).resolve(), *sys.argv[3:]))
