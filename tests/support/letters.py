"""Packages of networks with batch norms as training would leave them."""

from __future__ import annotations

import torch
from torch import nn

from eagleray.imaging import ImageContract, named_contract
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.package import Lineage, ModelPackage, create_package
from eagleray.tasks import Multiclass

__all__ = ["CONTRACT", "package_of"]

CONTRACT: ImageContract = named_contract("whole-image", size=64)
LABELS = tuple("abcde")


def package_of(name: str) -> ModelPackage:
    torch.manual_seed(0)
    architecture = Architecture(name=name, num_outputs=len(LABELS))
    module = build(architecture).eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):  # folding one that does nothing would prove nothing
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return create_package(
        name="letters",
        task=Multiclass(labels=LABELS),
        architecture=architecture,
        contract=CONTRACT,
        module=module,
        lineage=Lineage.now(),
    )
