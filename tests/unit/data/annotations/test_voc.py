"""Pascal VOC: layouts, sizes, faults, and XML that is not trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.core.errors import InputError
from eagleray.data.annotations.xml_tree import parse_xml
from eagleray.data.labelled import read_objects
from tests.support.annotated import (
    annotations_of,
    box,
    read_one,
    voc,
    voc_object,
    write,
    write_image,
)


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("1.png", "1.xml"),
        ("images/1.jpg", "annotations/1.xml"),
        ("VOC2007/JPEGImages/1.jpg", "VOC2007/Annotations/1.xml"),
        ("images/a/1.jpg", "annotations/a/1.xml"),
    ],
)
def test_layouts(tmp_path: Path, image: str, labels: str) -> None:
    write_image(tmp_path / image)
    write(tmp_path / labels, voc(voc_object(" cell ", 1, 2, 4, 6), voc_object("é", 0.5, 0, 40, 30)))
    first, second = read_one(tmp_path)
    assert box(first) == ("cell", 1.0, 2.0, 3.0, 4.0)
    assert box(second) == ("é", 0.5, 0.0, 39.5, 30.0)


def test_other_images_of_a_development_kit_are_not_counted(tmp_path: Path) -> None:
    write_image(tmp_path / "JPEGImages/1.jpg")
    write_image(tmp_path / "SegmentationClass/1.png")
    write(tmp_path / "Annotations/1.xml", voc(voc_object("cell", 1, 2, 4, 6)))
    assert read_objects(str(tmp_path)).notes[1:] == ()


def test_folders_of_splits_divide_the_data(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_image(tmp_path / split / "images/1.png")
        write(tmp_path / split / "annotations/1.xml", voc(voc_object("cell", 1, 2, 4, 6)))
    assert read_objects(str(tmp_path)).splits == ("test", "train", "validation")
    assert read_objects(str(tmp_path / "val")).splits == ()


def test_a_missing_size_is_that_of_the_upright_image(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    write(tmp_path / "1.xml", voc(voc_object("cell", 1, 2, 4, 6), width=0, height=0))
    assert len(read_one(tmp_path)) == 1


FAULTS = [
    (voc_object("cell", 4, 2, 4, 6), "1 box without an area"),
    (voc_object("cell", 4, 2, 1, 6), "1 box without an area"),
    (voc_object("cell", 50, 2, 60, 6), "1 box outside of its image"),
    (voc_object("cell", -1, 2, 4, 6), "1 box clipped to its image"),
    (voc_object("", 1, 2, 4, 6), "1 object that cannot be read"),
    (voc_object("cell", "x", 2, 4, 6), "1 object that cannot be read"),
    (voc_object("cell", "nan", 2, 4, 6), "1 object that cannot be read"),
    ("<object><name>cell</name></object>", "1 object that cannot be read"),
]


@pytest.mark.parametrize(("item", "fault"), FAULTS)
def test_an_invalid_object_is_counted(tmp_path: Path, item: str, fault: str) -> None:
    write_image(tmp_path / "1.png")
    write(tmp_path / "1.xml", voc(voc_object("cell", 1, 2, 4, 6), item))
    images = read_objects(str(tmp_path), max_invalid=0.5)
    assert fault in images.notes[-1]
    assert f"{tmp_path}/1.xml, object 2" in images.notes[-1]


def test_a_box_that_is_clipped_lies_in_its_image(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    write(tmp_path / "1.xml", voc(voc_object("cell", -5, 20, 4, 99)))
    (one,) = read_one(tmp_path)
    assert box(one) == ("cell", 0.0, 20.0, 4.0, 10.0)


def test_images_and_annotations_without_each_other_are_counted(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_image(tmp_path / f"{name}.png")
    for name in ("2", "3"):
        write(tmp_path / f"{name}.xml", voc())
    with pytest.raises(InputError) as caught:
        read_objects(str(tmp_path))
    assert str(caught.value).startswith(
        f"2 of 3 images of {tmp_path} are invalid, a fraction of 0.667, and the limit is 0.1: "
        f"1 annotation without its image ({tmp_path}/3.xml); "
        f"1 image without its annotation ({tmp_path}/1.png)."
    )
    assert list(annotations_of(read_objects(str(tmp_path), max_invalid=0.7))) == ["2.png"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("<annotation>", "not valid XML"),
        ("<annotation><size><width>a</width><height>3</height></size></annotation>", "'a' is not"),
        (voc(width=2_000_000), "2000000 x 30 pixels"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "document type"),
        ("<annotation>" + "<a>" * 40 + "</a>" * 40 + "</annotation>", "more than 32 deep"),
    ],
)
def test_a_file_that_cannot_be_read_is_counted(tmp_path: Path, content: str, fault: str) -> None:
    for name in ("1", "2"):
        write_image(tmp_path / f"{name}.png")
    write(tmp_path / "1.xml", voc())
    write(tmp_path / "2.xml", content)
    images = read_objects(str(tmp_path), max_invalid=0.5)
    assert list(annotations_of(images)) == ["1.png"]
    assert "1 annotation that cannot be read" in images.notes[-1]
    assert fault in images.notes[-1]


def test_entities_are_refused_in_every_encoding() -> None:
    text = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'
    with pytest.raises(ValueError, match="document type"):
        parse_xml(text.encode("utf-16"))
    assert parse_xml(b"<a>x</a>").text == "x"
