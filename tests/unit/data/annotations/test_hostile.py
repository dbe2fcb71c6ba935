"""Two thousand damaged files of labels: each is read, counted or refused in one sentence."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eagleray.core.errors import UserError
from eagleray.data.annotations.masks import mask_of_pixels
from eagleray.data.labelled import read_objects
from eagleray.tasks.annotation import parse_annotation
from tests.support.annotated import (
    HEIGHT,
    WIDTH,
    coco,
    instances,
    voc,
    voc_object,
    write,
    write_image,
)
from tests.support.images import encode

NUM_FILES = 250  # of each kind
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 255, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, -1e308),
    *("", "x", "-1", "\u0000", "é" * 2000, [], {}, [[]], [None], {"size": [1, 1], "counts": "0"}),
    *([1e9] * 6, [0, 0, 1e9, 1e9], [[1e9] * 6], {"size": [30, 40], "counts": [2**40, -(2**40)]}),
)


def coco_source() -> bytes:
    mask = mask_of_pixels(instances() == 7)
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, 5, HEIGHT * WIDTH - 5]}
    return coco(
        [
            {"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]]},
            {"bbox": [1, 2, 3, 4], "segmentation": runs, "iscrowd": 1},
            {"bbox": [0, 0, 4, 5], "segmentation": mask.model_dump(), "category_id": 2},
        ]
    ).encode()


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = list(value.items()) if isinstance(value, dict) else []
    items = list(enumerate(value)) if isinstance(value, list) else items
    return [path] * bool(path) + [
        found for key, one in items for found in paths_in(one, (*path, key))
    ]


def changed_field(content: bytes, generator: random.Random) -> bytes:
    """Replace or remove some values of a JSON text."""
    fields = json.loads(content)
    for _ in range(generator.randint(1, 3)):
        *above, key = generator.choice(paths_in(fields))
        parent = fields
        for step in above:
            parent = parent[step]
        if generator.random() < 0.2:
            del parent[key]
        else:
            parent[key] = generator.choice(VALUES)
        if not fields:
            break
    return json.dumps(fields).encode()


def changed_words(content: bytes, generator: random.Random) -> bytes:
    """Replace some numbers and words of a text."""
    words = content.replace(b"<", b" <").replace(b">", b"> ").split(b" ")
    for _ in range(generator.randint(1, 4)):
        value = str(generator.choice((*VALUES, "nan", "inf", "1e999", "</a>", "<!DOCTYPE a>")))
        words[generator.randrange(len(words))] = value.encode()[:4000]
    return b" ".join(words)


def changed_bytes(content: bytes, generator: random.Random) -> bytes:
    """Change, cut or repeat some bytes."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        place = generator.randrange(len(changed))
        kind = generator.random()
        if kind < 0.6:
            changed[place] = generator.randrange(256)
        elif kind < 0.8:
            del changed[place : place + generator.randint(1, 20)]
        else:
            changed[place:place] = changed[place : place + generator.randint(1, 200)]
        if not changed:
            break
    return bytes(changed)


Mutation = Callable[[bytes, random.Random], bytes]
VOC = voc(voc_object("cell", 1, 2, 4, 6), voc_object("debris", 5, 6, 7, 8)).encode()
YOLO = b"0 0.5 0.5 0.25 0.2\n1 0.1 0.1 0.5 0.1 0.5 0.5\n"
KINDS: dict[str, tuple[str, bytes, Mutation]] = {
    "COCO, fields": ("labels.json", coco_source(), changed_field),
    "COCO, bytes": ("labels.json", coco_source(), changed_bytes),
    "VOC, words": ("annotations/1.xml", VOC, changed_words),
    "VOC, bytes": ("annotations/1.xml", VOC, changed_bytes),
    "YOLO, words": ("labels/1.txt", YOLO, changed_words),
    "YOLO, bytes": ("labels/1.txt", YOLO, changed_bytes),
    "instances, bytes": ("instances/1.png", encode(instances()), changed_bytes),
    "classes, bytes": ("data.yaml", b"nc: 2\nnames:\n  0: cell\n  1: debris\n", changed_bytes),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    name, source, mutate = KINDS[kind]
    write_image(tmp_path / "images/1.png")
    write(tmp_path / "labels.json" if name == "labels.json" else tmp_path / name, source)
    if name in ("labels/1.txt", "data.yaml"):
        write(tmp_path / "labels/1.txt", YOLO)
        write(tmp_path / "data.yaml", "names: [cell, debris]")
    num_read, sentences = 0, list[str]()
    for seed in range(NUM_FILES):
        content = mutate(source, random.Random(seed))
        write(tmp_path / name, content)
        try:
            images = read_objects(str(tmp_path), max_invalid=1.0)
        except UserError as error:
            sentences.append(str(error))
            continue
        for text in images.labels:
            parse_annotation(text)
        num_read += 1
    assert num_read > 0
    assert num_read + len(sentences) == NUM_FILES
    assert [text for text in sentences if not text.endswith(".") or len(text) > 3000] == []
