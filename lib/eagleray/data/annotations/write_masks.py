"""Writes masks as PNGs: of numbered objects (16 bits), or of numbered classes (8 bits)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from eagleray.core.errors import InputError
from eagleray.data.annotations.class_names import CLASSES_FILE
from eagleray.data.annotations.mask_images import IGNORED
from eagleray.data.annotations.masks import pixels_of
from eagleray.data.annotations.output import Losses, NamedImage, classes_of, require_plain_names
from eagleray.tasks.annotation import TrueObject
from eagleray.tasks.run_lengths import MAX_MASK_PIXELS

__all__ = ["write_index_masks", "write_instance_masks"]

_WITHOUT_MASK = "objects without a mask"
_BACKGROUND_NAME = "background"


def write_instance_masks(
    images: Sequence[NamedImage], losses: Losses
) -> Iterator[tuple[str, bytes]]:
    """Yield a 16-bit PNG for each image, and the name of the class if there is one class.

    Where objects overlap, the smaller one is in front.

    Raises:
        InputError: If no object has a mask, or an image is too large.
    """
    labels = classes_of(images)
    require_plain_names(labels, CLASSES_FILE)
    _require_masks(images)
    for image in images:
        objects = image.without(losses, crowds="crowds")
        losses["classes of objects"] += len(objects) * (len(labels) > 1)
        numbered = list(enumerate(_with_masks(objects, losses), 1))
        pixels = _blank(image, np.uint16)
        painted = sorted(((_area(one), number, one) for number, one in numbered), reverse=True)
        for _, number, one in painted:
            assert one.mask is not None
            pixels[pixels_of(one.mask)] = number
        losses["objects that others hide"] += len(numbered) - len(np.unique(pixels[pixels > 0]))
        yield f"instances/{image.stem}.png", _png(pixels)
    if len(labels) == 1:
        yield CLASSES_FILE, f"{labels[0]}\n".encode()


def write_index_masks(images: Sequence[NamedImage], losses: Losses) -> Iterator[tuple[str, bytes]]:
    """Yield an 8-bit PNG of classes for each image, and the list of their names.

    Raises:
        InputError: If no object has a mask, an image is too large, or there are too many classes.
    """
    labels = [label for label in classes_of(images) if not _is_background(label)]
    require_plain_names(labels, CLASSES_FILE)
    if len(labels) >= IGNORED:
        raise InputError(
            f"There are {len(labels):,} classes, and masks of 8 bits have up to {IGNORED - 1}; use "
            "--to coco."
        )
    _require_masks(images)
    indices = {label: number for number, label in enumerate(labels, 1)}
    for image in images:
        yield f"masks/{image.stem}.png", _png(_classes(image, indices, losses))
    yield CLASSES_FILE, "".join(f"{name}\n" for name in (_BACKGROUND_NAME, *labels)).encode()


def _classes(
    image: NamedImage, indices: Mapping[str, int], losses: Losses
) -> npt.NDArray[np.uint8]:
    pixels = _blank(image, np.uint8)
    objects = [one for one in image.annotation.objects if one.label in indices]
    losses[f"objects of the class {_BACKGROUND_NAME}"] += len(image.annotation.objects) - len(
        objects
    )
    shown = _with_masks(objects, losses)
    single = [one.label for one in shown if not one.crowd]
    losses["objects that are no longer told apart"] += len(single) - len(set(single))
    for one in sorted(shown, key=_area, reverse=True):
        assert one.mask is not None
        pixels[pixels_of(one.mask)] = IGNORED if one.crowd else indices[one.label]
    return pixels


def _is_background(label: str) -> bool:
    return label.strip("_").casefold() == _BACKGROUND_NAME


def _with_masks(objects: Iterable[TrueObject], losses: Losses) -> list[TrueObject]:
    every = list(objects)
    kept = [one for one in every if one.mask is not None]
    losses[_WITHOUT_MASK] += len(every) - len(kept)
    return kept


def _area(one: TrueObject) -> float:
    return one.width * one.height


def _require_masks(images: Sequence[NamedImage]) -> None:
    objects = [one for image in images for one in image.annotation.objects]
    if objects and all(one.mask is None for one in objects):
        raise InputError(
            f"None of the {len(objects):,} objects has a mask, so there is nothing to write as "
            "masks; use --to coco, voc or yolo, which have boxes."
        )


def _blank(image: NamedImage, kind: type[Any]) -> npt.NDArray[Any]:
    height, width = image.annotation.height, image.annotation.width
    if height * width > MAX_MASK_PIXELS:
        raise InputError(
            f"{image.uri} has {width:,} x {height:,} pixels, and masks have up to "
            f"{MAX_MASK_PIXELS:,}; leave it out."
        )
    return np.zeros((height, width), kind)


def _png(pixels: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
