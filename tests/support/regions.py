"""A small network of boxes with masks."""

from __future__ import annotations

from typing import Any

import torch

from eagleray.models.architectures import Architecture, default_contract
from eagleray.models.building import build, task_of_network
from eagleray.models.package import ModelPackage, create_package
from eagleray.tasks import Instance
from tests.support.models import LINEAGE, golden_png

__all__ = ["region_package"]


def region_package(name: str = "nuclei") -> ModelPackage:
    """Make the package of a network with random weights, which finds objects everywhere."""
    architecture = Architecture(name="maskrcnn/resnet20", num_outputs=1)
    contract = default_contract(architecture.name, size=32)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module: Any = build(architecture).eval()
        module.head.labels.weight.normal_(std=0.5)
        module.masks[-1].bias.fill_(1)
    task = Instance(labels=("nucleus",), thresholds=(0.2,))
    return create_package(
        name=name,
        task=task_of_network(task, architecture, contract),
        architecture=architecture,
        contract=contract,
        module=module,
        lineage=LINEAGE,
        golden_images=[golden_png(seed) for seed in range(2)],
    )
