"""Writes YOLO text: a file for each image in `labels/`, and `data.yaml` with names and splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import yaml

from eagleray.data.annotations.output import Losses, NamedImage, classes_of, split_folders

__all__ = ["write_yolo"]


def write_yolo(images: Sequence[NamedImage], losses: Losses) -> Iterator[tuple[str, bytes]]:
    """Yield the text of each image, and `data.yaml` at the end."""
    labels = classes_of(images)
    indices = {label: index for index, label in enumerate(labels)}
    for image in images:
        yield f"labels/{image.stem}.txt", _content(image, indices, losses)
    folders = [folder for folder in split_folders(images) if folder]
    if folders:
        places = {folder: f"images/{folder}" for folder in folders}
    else:
        places = {"train": "images", "val": "images"}
    fields = {"path": ".", **places, "names": dict(enumerate(labels))}
    yield "data.yaml", yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).encode()


def _content(image: NamedImage, indices: Mapping[str, int], losses: Losses) -> bytes:
    width, height = image.annotation.width, image.annotation.height
    lines = []
    for one in image.without(losses, crowds="crowds", masks="masks"):
        shares = (
            (one.x + one.width / 2) / width,
            (one.y + one.height / 2) / height,
            one.width / width,
            one.height / height,
        )
        lines.append(" ".join([str(indices[one.label]), *(f"{share:.10g}" for share in shares)]))
    return "".join(f"{line}\n" for line in lines).encode()
