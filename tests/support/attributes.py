"""A labelled table whose images alone say nothing: the label is who, not what, is bright where."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eagleray.models.attributes import CategoryAttribute, NumberAttribute, num_features
from eagleray.models.building import build
from eagleray.models.networks.head import NetworkWithAttributes
from eagleray.models.package import ModelPackage
from tests.support.models import golden_png, lenet, small_package

ATTRIBUTES = (
    NumberAttribute(name="age", mean=40.0, std=10.0),
    CategoryAttribute(name="site", values=("north", "south")),
)


def write_sites(folder: Path, count: int = 120, *, seed: int = 0) -> Path:
    """Write a table of gray images, dark and bright, from two sites.

    A bright image is `ill` in the north and `well` in the south, a dark one the other way round:
    neither the image nor the site alone tells. `age` and `note` have nothing to do with it.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    with (folder / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "age", "site", "note"])
        for index in range(count):
            bright, north = index % 2 == 0, index // 2 % 2 == 0
            base = 150 if bright else 30
            pixels = generator.integers(base, base + 60, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:03d}.png")
            age = "" if index % 10 == 7 else int(generator.integers(20, 80))
            label = "ill" if bright == north else "well"
            rows.writerow([f"{index:03d}.png", label, age, "north" if north else "south", "-"])
    return folder / "table.csv"


@cache
def package_with_attributes(name: str = "digits") -> ModelPackage:
    """Make a LeNet-5 with random weights that takes `age` and `site`, with golden images."""
    architecture = lenet().model_copy(update={"num_attributes": num_features(ATTRIBUTES)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = build(architecture).eval()
        assert isinstance(module, NetworkWithAttributes)
        torch.nn.init.normal_(module.head.answer.weight)
    return small_package(
        name=name,
        architecture=architecture,
        module=module,
        attributes=ATTRIBUTES,
        golden_images=[golden_png(seed) for seed in range(3)],
        golden_attributes=[
            {"age": "41", "site": "north"},
            {"age": "", "site": "south"},
            {"age": "70", "site": "elsewhere"},
        ],
    )
