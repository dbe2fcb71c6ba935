"""Writes COCO's panoptic segments: JSON, and a PNG for each image with the id of each pixel."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from eagleray.core.errors import InputError
from eagleray.data.annotations.coco_panoptic import VOID
from eagleray.data.annotations.masks import box_of, mask_of_pixels, pixels_of
from eagleray.data.annotations.output import Losses, NamedImage, classes_of, split_folders
from eagleray.tasks.annotation import TrueObject
from eagleray.tasks.run_lengths import MAX_MASK_PIXELS
from eagleray.tasks.segmentation.things import find_things

__all__ = ["write_panoptic"]


@dataclass(frozen=True)
class _Categories:
    """The categories.

    Attributes:
        ids: Id of each label.
        things: Labels of things.
    """

    ids: Mapping[str, int]
    things: frozenset[str]

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"id": number, "name": label, "isthing": int(label in self.things)}
            for label, number in self.ids.items()
        ]


def write_panoptic(images: Sequence[NamedImage], losses: Losses) -> Iterator[tuple[str, bytes]]:
    """Yield the PNGs and the JSON of each split; names of images are paths below `images/`.

    The later of two objects that share pixels is in front. All objects of a label of stuff are one
    segment. Pixels without an object are void, of which nothing is said.

    Raises:
        InputError: If no object has a mask, or an image is too large.
    """
    objects = [one for image in images for one in image.annotation.objects]
    if objects and all(one.mask is None for one in objects):
        raise InputError(
            f"None of the {len(objects):,} objects has a mask, so there are no segments to write; "
            "use --to coco, voc or yolo, which have boxes."
        )
    things = frozenset(find_things(image.annotation for image in images))
    ids = {label: number for number, label in enumerate(classes_of(images), 1)}
    categories = _Categories(ids, things)
    for folder, members in split_folders(images).items():
        base = f"annotations/panoptic_{folder}" if folder else "annotations/panoptic"
        listed, annotations = [], []
        for number, image in enumerate(members, 1):
            pixels, segments = _segments(image, categories, losses)
            name = f"{image.stem.removeprefix(f'{folder}/')}.png"
            yield f"{base}/{name}", _png(pixels)
            height, width = pixels.shape
            sizes = {"width": width, "height": height}
            listed.append({"id": number, "file_name": image.name, **sizes})
            annotations.append({"image_id": number, "file_name": name, "segments_info": segments})
        content = {
            "images": listed,
            "annotations": annotations,
            "categories": categories.as_json(),
        }
        yield f"{base}.json", json.dumps(content, allow_nan=False).encode()


def _segments(
    image: NamedImage, categories: _Categories, losses: Losses
) -> tuple[npt.NDArray[np.int32], list[dict[str, Any]]]:
    """Return the id of the segment of each pixel, and the segments that have pixels."""
    height, width = image.annotation.height, image.annotation.width
    if height * width > MAX_MASK_PIXELS:
        raise InputError(
            f"{image.uri} has {width:,} x {height:,} pixels, and masks have up to "
            f"{MAX_MASK_PIXELS:,}; leave it out."
        )
    pixels = np.full((height, width), VOID, np.int32)
    first: dict[tuple[str, bool], int] = {}
    painted: dict[int, TrueObject] = {}
    covered = np.zeros((height, width), bool)
    for number, one in enumerate(image.annotation.objects, 1):
        if one.mask is None:
            losses["objects without a mask"] += 1
            continue
        inside = pixels_of(one.mask)
        covered |= inside
        own = number
        if one.label not in categories.things:
            own = first.setdefault((one.label, one.crowd), number)
        pixels[inside] = VOID if one.kind == "void" else own
        if one.kind != "void":
            painted.setdefault(own, one)
    seen = set(np.unique(pixels).tolist())
    losses["objects that others hide"] += len(set(painted) - seen)
    losses["images with pixels of no object, which are void"] += not covered.all()
    kept = {own: one for own, one in painted.items() if own in seen}
    return pixels, [_described(pixels == own, own, one, categories) for own, one in kept.items()]


def _described(
    inside: npt.NDArray[np.bool_], own: int, one: TrueObject, categories: _Categories
) -> dict[str, Any]:
    return {
        "id": own,
        "category_id": categories.ids[one.label],
        "area": int(inside.sum()),
        "bbox": list(map(int, box_of(mask_of_pixels(inside)))),
        "iscrowd": int(one.crowd),
    }


def _png(ids: npt.NDArray[np.int32]) -> bytes:
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colors).save(buffer, "PNG")
    return buffer.getvalue()
