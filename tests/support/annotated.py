"""Small folders of labelled objects in every label format, and what is read from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eagleray.data.labelled import LabelledImages, read_objects
from eagleray.tasks.annotation import Annotation, TrueObject, parse_annotation
from tests.support.images import encode, photo

WIDTH, HEIGHT = 40, 30


def write(path: Path, content: str | bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_image(path: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write a picture in the format of its extension."""
    write(path, encode(photo(width, height), path.suffix[1:].replace("jpg", "jpeg")))


def voc_object(name: str, left: object, top: object, right: object, bottom: object) -> str:
    """Return the XML of one object."""
    box = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


def voc(*objects: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Return the XML of an image."""
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def coco(
    annotations: Sequence[Mapping[str, Any]],
    *,
    names: Sequence[str] = ("1.png",),
    classes: Sequence[str] = ("cell", "debris"),
    **size: int,
) -> str:
    """Return COCO's JSON: images and categories have ids from 1, annotations the fields given."""
    size = size or {"width": WIDTH, "height": HEIGHT}
    images = [{"id": id_, "file_name": name, **size} for id_, name in enumerate(names, 1)]
    defaults = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    return json.dumps(
        {
            "images": images,
            "annotations": [{**defaults, "id": n, **one} for n, one in enumerate(annotations, 1)],
            "categories": [{"id": id_, "name": name} for id_, name in enumerate(classes, 1)],
        }
    )


def instances() -> np.ndarray:
    """Return two numbered objects, uint16 (HEIGHT, WIDTH): one in a corner, one of two parts."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint16)
    pixels[0:5, 0:4] = 7
    pixels[10:12, 20:30] = 300
    pixels[20:22, 20:22] = 300
    return pixels


def annotations_of(images: LabelledImages) -> dict[str, Annotation]:
    """Return the annotation of each image by its name."""
    names = [uri.rsplit("/", 1)[-1] for uri in images.uris]
    return dict(zip(names, map(parse_annotation, images.labels), strict=True))


def read_one(folder: Path | str, max_invalid: float = 0.1) -> tuple[TrueObject, ...]:
    """Return the objects of the only image of a folder."""
    (found,) = annotations_of(read_objects(str(folder), max_invalid=max_invalid)).values()
    assert (found.width, found.height) == (WIDTH, HEIGHT)
    return found.objects


def box(one: TrueObject) -> tuple[str, float, float, float, float]:
    """Return the label and the box of an object."""
    return one.label, one.x, one.y, one.width, one.height
