"""COCO's JSON: what is read, where its images are found, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagleray.core.errors import InputError
from eagleray.data.annotations.masks import mask_of_pixels
from eagleray.data.labelled import read_objects
from tests.support.annotated import (
    HEIGHT,
    WIDTH,
    annotations_of,
    box,
    coco,
    read_one,
    write,
    write_image,
)

PIXELS = np.zeros((HEIGHT, WIDTH), bool)
PIXELS[2:5, 1:4] = True
MASK = mask_of_pixels(PIXELS)
RUNS = [32, 3, 27, 3, 27, 3, HEIGHT * WIDTH - 95]


def test_boxes_crowds_and_names_are_read(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    objects: list[dict[str, Any]] = [
        {"bbox": [1, 2, 3, 4]},
        {"bbox": [5.5, 6, 7, 8.25], "category_id": 2, "iscrowd": 1, "area": 3, "extra": {}},
    ]
    write(tmp_path / "labels.json", coco(objects))
    first, second = read_one(tmp_path / "labels.json")
    assert box(first) == ("cell", 1.0, 2.0, 3.0, 4.0)
    assert (first.crowd, first.mask) == (False, None)
    assert box(second) == ("debris", 5.5, 6.0, 7.0, 8.25)
    assert second.crowd


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 4, 2, 4, 5, 1, 5]],
        {"size": [HEIGHT, WIDTH], "counts": RUNS},
        {"size": [HEIGHT, WIDTH], "counts": MASK.counts},
    ],
    ids=["polygon", "runs", "compressed"],
)
@pytest.mark.parametrize("bbox", [{"bbox": [1, 2, 3, 3]}, {}, {"bbox": []}])
def test_masks_are_read_from_every_form(
    tmp_path: Path, segmentation: Any, bbox: dict[str, Any]
) -> None:
    write_image(tmp_path / "1.png")
    write(tmp_path / "labels.json", coco([{**bbox, "segmentation": segmentation}]))
    (one,) = read_one(tmp_path)
    assert one.mask == MASK
    assert box(one) == ("cell", 1.0, 2.0, 3.0, 3.0)


def test_an_image_without_objects_stays(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    write(tmp_path / "labels.json", coco([]))
    assert read_one(tmp_path) == ()


def test_a_missing_size_is_that_of_the_image(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    write(tmp_path / "labels.json", coco([{"bbox": [1, 2, 3, 4]}], width=0, height=0))
    assert len(read_one(tmp_path)) == 1


@pytest.mark.parametrize(
    ("json_file", "image", "name"),
    [
        ("labels.json", "1.png", "1.png"),
        ("labels.json", "images/1.png", "1.png"),
        ("labels.json", "images/1.png", "images/1.png"),
        ("labels.json", "images/1.png", "C:\\data\\1.png"),
        ("labels.json", "images/1.png", "/home/me/1.png"),
        ("annotations/instances_train2017.json", "train2017/1.png", "1.png"),
        ("annotations/instances_train2017.json", "images/train2017/1.png", "1.png"),
        ("annotations/train.json", "images/train/1.png", "train/1.png"),
        ("train/_annotations.coco.json", "train/1.png", "1.png"),
    ],
)
def test_images_are_found_in_usual_layouts(
    tmp_path: Path, json_file: str, image: str, name: str
) -> None:
    write_image(tmp_path / image)
    write(tmp_path / json_file, coco([{"bbox": [1, 2, 3, 4]}], names=[name]))
    assert len(read_one(tmp_path)) == 1
    assert len(read_one(tmp_path / json_file)) == 1


def test_files_of_splits_divide_the_data(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / f"images/{split}/1.png")
        write(tmp_path / f"annotations/instances_{split}.json", coco([{"bbox": [1, 2, 3, 4]}]))
        write(tmp_path / f"annotations/captions_{split}.json", coco([{"caption": "a cell"}]))
    images = read_objects(str(tmp_path))
    assert images.splits == ("train", "validation")
    assert [uri.rsplit("/", 2)[-2] for uri in images.uris] == ["train", "val"]
    assert "train 1, validation 1" in images.notes[1]
    assert read_objects(str(tmp_path / "annotations/instances_val.json")).splits == ()


def test_images_that_are_not_listed_are_reported(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        write_image(tmp_path / f"{name}.png")
    write(tmp_path / "labels.json", coco([{"bbox": [1, 2, 3, 4]}]))
    assert read_objects(str(tmp_path)).notes[1:] == (
        f"Not read: 2 images that no JSON lists (the first is {tmp_path}/2.png).",
    )
    assert read_objects(str(tmp_path / "labels.json")).notes[1:] == ()


def test_a_name_of_two_images_is_not_guessed(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    write_image(tmp_path / "2.png")
    write(tmp_path / "labels.json", coco([], names=["a/1.png", "b/1.png", "2.png"]))
    images = read_objects(str(tmp_path), max_invalid=1.0)
    assert list(annotations_of(images)) == ["2.png"]
    assert "2 annotations without their images" in images.notes[1]


FAULTY: list[tuple[dict[str, Any], str]] = [
    ({"bbox": [1, 2, 0, 4]}, "1 box without an area"),
    ({"bbox": [1, 2, 3, -4]}, "1 box without an area"),
    ({"bbox": [100, 2, 3, 4]}, "1 box outside of its image"),
    ({"bbox": [1, 2, 3]}, "1 object that cannot be read"),
    ({"bbox": [1, 2, 1e308, 1e308]}, "1 box clipped to its image"),
    ({"bbox": ["x", 2, 3, 4]}, "1 object that cannot be read"),
    ({}, "1 object that cannot be read"),
    ({"bbox": [1, 2, 3, 4], "category_id": 9}, "1 label that is not in the list of classes"),
    ({"bbox": [1, 2, 3, 4], "image_id": 9}, "1 object of an image that is not listed"),
    ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 1, 2, 2]]}, "1 polygon of fewer than three"),
    (
        {"bbox": [1, 2, 3, 4], "segmentation": {"size": [9, 9], "counts": [81]}},
        "1 mask that has not the size of its image",
    ),
    (
        {"bbox": [1, 2, 3, 4], "segmentation": {"size": [HEIGHT, WIDTH], "counts": [81]}},
        "1 mask that is damaged",
    ),
    (
        {"bbox": [1, 2, 3, 4], "segmentation": {"size": [HEIGHT, WIDTH], "counts": "TTT"}},
        "1 mask that is damaged",
    ),
    ({"bbox": [1, 2, 3, 4], "segmentation": [[1e12, 1, 2, 2, 3, 3]]}, "1 mask that is damaged"),
]


@pytest.mark.parametrize(("fields", "fault"), FAULTY, ids=[fault for _, fault in FAULTY])
def test_an_invalid_object_is_counted_and_left_out(
    tmp_path: Path, fields: dict[str, Any], fault: str
) -> None:
    write_image(tmp_path / "1.png")
    write(tmp_path / "labels.json", coco([{"bbox": [1, 2, 3, 4]}, fields]))
    images = read_objects(str(tmp_path), max_invalid=0.5)
    assert fault in images.notes[-1]
    assert "labels.json, annotation 1" in images.notes[-1]
    (found,) = annotations_of(images).values()
    kept = 2 if "clipped" in fault else 1
    assert len(found.objects) == kept


def test_too_many_invalid_objects_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    objects = [{"bbox": [1, 2, 3, 4]}] * 8 + [{"bbox": [1, 2, 0, 4]}, {"bbox": [90, 2, 3, 4]}]
    write(tmp_path / "labels.json", coco(objects))
    with pytest.raises(InputError) as caught:
        read_objects(str(tmp_path))
    assert str(caught.value).startswith(
        f"2 of 10 labelled objects of {tmp_path} are invalid, a fraction of 0.2, and the limit is "
        f"0.1: 1 box without an area ({tmp_path}/labels.json, annotation 8); 1 box outside of its "
    )
    assert str(caught.value).endswith("or allow more with --max-invalid.")
    assert len(read_one(tmp_path, max_invalid=0.2)) == 8


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[]", "lacks one of the lists"),
        ('{"images": [], "annotations": []}', "lacks one of the lists"),
        ('{"images": [], "annotations": [], "categories": {}}', "no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": [], x', "not valid JSON"),
        ('{"images": [], "annotations": [NaN], "categories": []}', "NaN or Infinity"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "category 0: name"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, '
            '{"id": 1, "name": "b"}]}',
            "two categories with the id 1",
        ),
        ('{"images": [], "annotations": [], "categories": []}', "has no labelled images"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str, fault: str) -> None:
    write(tmp_path / "labels.json", content)
    with pytest.raises(InputError, match=fault):
        read_objects(str(tmp_path / "labels.json"))


def test_absent_images_are_refused_with_where_they_are_searched(tmp_path: Path) -> None:
    write(tmp_path / "labels.json", coco([{"bbox": [1, 2, 3, 4]}], names=["../1.png"]))
    write_image(tmp_path.parent / "1.png")
    with pytest.raises(InputError, match=r"None of the 1 images of .*labels, .*images"):
        read_objects(str(tmp_path / "labels.json"))


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        read_objects(str(tmp_path / "labels.json"))


def test_the_text_of_an_annotation_is_its_json(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    write(tmp_path / "labels.json", coco([{"bbox": [1, 2, 3, 4]}]))
    (text,) = read_objects(str(tmp_path)).labels
    assert json.loads(text) == {
        "width": WIDTH,
        "height": HEIGHT,
        "objects": [{"label": "cell", "x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0}],
    }
