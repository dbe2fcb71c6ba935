"""Pictures of bright squares and discs in noise, labelled by boxes, and a small network for them.

TinyMaps has no batch normalisation, so that its loss does not depend on the number of workers.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from eagleray.models.architectures import Architecture, default_contract
from eagleray.models.building import build
from eagleray.models.package import ModelPackage, create_package
from eagleray.tasks import Detection
from eagleray.tasks.annotation import Annotation, TrueObject
from eagleray.training.spec import TrainSpec
from tests.support.images import Pixels
from tests.support.models import LINEAGE
from tests.support.training import small_spec

__all__ = [
    "DETECTOR",
    "TinyMaps",
    "annotation",
    "detection_spec",
    "detector_package",
    "write_shapes",
]

DETECTOR = "detector/tests.support.detection:TinyMaps"
"""Architecture of a small detector; its module must be an extension."""

WIDTH, HEIGHT = 96, 64


class TinyMaps(nn.Module):
    """A classifier with feature maps of the strides 2, 4 and 8."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.first = self._stage(in_channels, 8)
        self.second = self._stage(8, 16)
        self.third = self._stage(16, 32)
        self.head = nn.Linear(32, num_classes)

    @staticmethod
    def _stage(channels: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(2, width), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self.third(self.second(self.first(images)))
        return cast("Tensor", self.head(features.mean(dim=(2, 3))))


def detector_package(name: str = "shapes") -> ModelPackage:
    """Make the package of a detector with random weights, which finds objects everywhere."""
    architecture = Architecture(name="detector/resnet20", num_outputs=2)
    torch.manual_seed(0)
    return create_package(
        name=name,
        task=Detection(
            labels=("disc", "square"), thresholds=(0.01, 0.01), min_score=0.005, max_objects=20
        ),
        architecture=architecture,
        contract=default_contract(architecture.name, size=32),
        module=build(architecture).eval(),
        lineage=LINEAGE,
    )


def annotation(
    *objects: tuple[str, float, float, float, float], width: int = WIDTH, height: int = HEIGHT
) -> str:
    """Return the label text of an image with objects (label, x, y, width, height)."""
    return Annotation(
        width=width,
        height=height,
        objects=tuple(
            TrueObject(label=label, x=x, y=y, width=across, height=down)
            for label, x, y, across, down in objects
        ),
    ).to_text()


def write_shapes(folder: Path, count: int = 24, *, seed: int = 0) -> Path:
    """Write pictures of 96 x 64 pixels and the table of their objects; return the table.

    One picture in eight is empty. The table divides them: of each eight two are for validation and
    two for test.
    """
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    table = folder / "objects.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for index in range(count):
            pixels = generator.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            objects = []
            for place in range(0 if index % 8 == 3 else generator.integers(1, 4)):
                side = int(generator.integers(12, 24))
                left = int(generator.integers(place * 32, place * 32 + 32 - side + 1))
                top = int(generator.integers(0, HEIGHT - side))
                label = ("disc", "square")[generator.integers(2)]
                _draw(pixels, label, left, top, side)
                objects.append((label, left, top, side, side))
            path = folder / f"{index:03d}.png"
            Image.fromarray(pixels).save(path)
            split = {0: "validation", 1: "validation", 2: "test", 3: "test"}.get(index % 8, "train")
            writer.writerow([str(path), annotation(*objects), split])
    return table


def _draw(pixels: Pixels, label: str, left: int, top: int, side: int) -> None:
    if label == "square":
        pixels[top : top + side, left : left + side] = (230, 200, 60)
    else:
        centre = (left + side // 2, top + side // 2)
        cv2.circle(pixels, centre, side // 2 - 1, (90, 160, 240), -1)


def detection_spec(data: Path | str, **changes: Any) -> TrainSpec:
    """Return a specification that learns the shapes."""
    fields = {"task": "detection", "architecture": DETECTOR, "name": "shapes", "image_size": 64}
    return small_spec(data, **{**fields, **changes})
