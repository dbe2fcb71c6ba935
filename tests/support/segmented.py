"""Small images with masks, and a network of pixels without batch normalisation."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from eagleray.data.annotations.masks import box_of, mask_of_pixels
from eagleray.tasks.annotation import Annotation, TrueObject
from eagleray.tasks.segmentation.center_loss import draw_centers
from eagleray.tasks.segmentation.class_maps import IGNORED
from tests.support.training import small_spec

PLAIN = "unet/tests.support.segmented:PlainStages"
"""A U-Net on three convolutions, whose loss does not depend on what shares a batch; its module must
be an extension."""


class PlainStages(nn.Sequential):
    """A classifier of three convolutions."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        stages: list[nn.Module] = []
        channels = in_channels
        for width in (16, 24, 32):
            stages += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
            channels = width
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*stages, *pooled, nn.Linear(channels, num_classes))


class BranchingStages(PlainStages):
    """A classifier whose layers depend on the values of an image, so that it cannot be traced."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        values = images * 2 if images.mean() > 0 else images
        for layer in self:
            values = layer(values)
        return values


def annotation_of(
    masks: Mapping[str, npt.NDArray[np.bool_]] | Sequence[tuple[str, npt.NDArray[np.bool_]]],
    *,
    crowds: Mapping[str, Any] | None = None,
) -> Annotation:
    """Return an annotation with an object for each label and mask, and crowds after them."""
    pairs = masks.items() if isinstance(masks, Mapping) else masks
    given = [(label, pixels, False) for label, pixels in pairs]
    given += [(label, pixels, True) for label, pixels in (crowds or {}).items()]
    objects = []
    for label, pixels, crowd in given:
        mask = mask_of_pixels(pixels)
        x, y, width, height = box_of(mask)
        objects.append(
            TrueObject(label=label, x=x, y=y, width=width, height=height, crowd=crowd, mask=mask)
        )
    height, width = given[0][1].shape
    return Annotation(width=width, height=height, objects=tuple(objects))


def outputs_of_objects(maps: Tensor, num_labels: int) -> npt.NDArray[np.float32]:
    """Return perfect activated outputs (num_labels + 3, H, W) for an object map (2, H, W)."""
    classes, numbers = maps
    known = torch.where(classes == IGNORED, 0, classes).long()
    drawn = draw_centers(numbers[None])
    probabilities = functional.one_hot(known, num_labels).permute(2, 0, 1).float()
    return torch.cat([probabilities, drawn.centers, drawn.offsets[0]]).numpy()


def disk(size: tuple[int, int], x: float, y: float, radius: float) -> npt.NDArray[np.bool_]:
    """Return the pixels of a disk in an image of (height, width)."""
    down, across = np.mgrid[: size[0], : size[1]]
    inside: npt.NDArray[np.bool_] = (across - x) ** 2 + (down - y) ** 2 <= radius**2
    return inside


def write_disks(folder: Path, count: int = 24, *, seed: int = 0) -> Path:
    """Write noisy images of 32 x 40 pixels with a bright and a dark disk, and their table."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        pixels = generator.integers(90, 130, (32, 40, 3), dtype=np.uint8)
        masks = {
            "bright": disk((32, 40), generator.uniform(8, 16), generator.uniform(8, 24), 6),
            "dark": disk((32, 40), generator.uniform(26, 33), generator.uniform(8, 24), 5),
        }
        pixels[masks["bright"]] += 100
        pixels[masks["dark"]] -= 80
        path = folder / f"{number:02d}.png"
        Image.fromarray(pixels).save(path)
        rows.append((path.name, annotation_of(masks).to_text()))
    table = folder / "disks.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return table


def disk_spec(data: Path | str, **changes: Any) -> Any:
    """Return a specification that learns the disks in a few seconds."""
    fields = {
        "task": "semantic",
        "name": "disks",
        "architecture": PLAIN,
        "image_size": 32,
        "epochs": 2,
        "batch_size": 6,
        "optimizer": "adamw",
        "learning_rate": 0.01,
    }
    return small_spec(data, **{**fields, **changes})


def write_nuclei(folder: Path, count: int = 36, *, seed: int = 0, floor: bool = False) -> Path:
    """Write noisy images of 32 x 40 pixels with one to three bright disks, and their table.

    With a floor the upper 3 rows are dark, and stuff of that label.
    """
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        pixels = generator.integers(90, 130, (32, 40, 3), dtype=np.uint8)
        places = generator.permutation([(8, 8), (22, 20), (33, 8), (8, 24)])[: 1 + number % 3]
        masks = [("nucleus", disk((32, 40), x + generator.uniform(-1, 1), y, 5)) for x, y in places]
        for _, mask in masks:
            pixels[mask] += 100
        if floor:
            pixels[:3] -= 80
            masks.append(("floor", np.indices((32, 40))[0] < 3))
        path = folder / f"{number:02d}.png"
        Image.fromarray(pixels).save(path)
        rows.append((path.name, annotation_of(masks).to_text()))
    table = folder / "nuclei.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return table


def nucleus_spec(data: Path | str, **changes: Any) -> Any:
    """Return a specification that learns to tell the nuclei apart in a few seconds."""
    architecture = PLAIN.replace("unet/", "panoptic/")
    return disk_spec(data, **{"task": "instance", "architecture": architecture, **changes})
