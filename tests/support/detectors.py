"""A tiny detector with random weights, whose objects are many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from eagleray.imaging import named_contract
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.package import ModelPackage, create_package
from eagleray.tasks import Detection
from tests.support.models import LINEAGE

LABELS = ("cell", "crack", "dust")


def detector_package(golden_images: Sequence[bytes] = (), **overrides: Any) -> ModelPackage:
    """Make a detector of 64 x 64 pixels; the overrides are arguments of the task."""
    architecture = Architecture(name="detector/resnet20", in_channels=3, num_outputs=len(LABELS))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module: Any = build(architecture).eval()
        module.head.labels.weight.normal_(std=0.5)
        module.head.boxes.weight.normal_(std=0.1)
    return create_package(
        name="found",
        task=Detection(labels=LABELS, **overrides),
        architecture=architecture,
        contract=named_contract("letterbox", size=64),
        module=module,
        lineage=LINEAGE,
        metrics={},
        golden_images=list(golden_images),
    )
