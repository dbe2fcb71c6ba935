"""Writes COCO's JSON: one file, or one for each split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eagleray.data.annotations.masks import pixels_of
from eagleray.data.annotations.output import Losses, NamedImage, classes_of, split_folders
from eagleray.tasks.annotation import TrueObject

__all__ = ["write_coco"]


def write_coco(images: Sequence[NamedImage], losses: Losses) -> Iterator[tuple[str, bytes]]:
    """Yield the JSON of each split; names of images are paths below `images/`.

    COCO's JSON carries all that an annotation has but pixels of which nothing is said.
    """
    kinds = [one.kind for image in images for one in image.annotation.objects]
    losses["void pixels of an image, which are a crowd"] += kinds.count("void")
    categories = {label: number for number, label in enumerate(classes_of(images), 1)}
    for folder, members in split_folders(images).items():
        path = f"annotations/{folder}.json" if folder else "annotations.json"
        yield path, json.dumps(_content(members, categories), allow_nan=False).encode()


def _content(images: Sequence[NamedImage], categories: Mapping[str, int]) -> dict[str, Any]:
    objects = [
        (image_id, one)
        for image_id, image in enumerate(images, 1)
        for one in image.annotation.objects
    ]
    kinds = {
        one.label: {"isthing": int(one.kind == "thing")}
        for _, one in objects
        if one.kind in ("thing", "stuff")
    }
    return {
        "images": [
            {
                "id": image_id,
                "file_name": image.name,
                "width": image.annotation.width,
                "height": image.annotation.height,
            }
            for image_id, image in enumerate(images, 1)
        ],
        "annotations": [
            {"id": number, "image_id": image_id, **_object(one, categories)}
            for number, (image_id, one) in enumerate(objects, 1)
        ],
        "categories": [
            {"id": number, "name": label, **kinds.get(label, {})}
            for label, number in categories.items()
        ],
    }


def _object(one: TrueObject, categories: Mapping[str, int]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "category_id": categories[one.label],
        "bbox": [one.x, one.y, one.width, one.height],
        "area": one.width * one.height,
        "segmentation": [],
        "iscrowd": int(one.crowd),
    }
    if one.mask is not None:
        fields["area"] = float(pixels_of(one.mask).sum())
        fields["segmentation"] = {"size": list(one.mask.size), "counts": one.mask.counts}
    return fields
