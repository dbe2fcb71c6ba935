"""YOLO text: layouts, lists of classes, upright sizes and faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.core.errors import InputError
from eagleray.data.annotations.class_names import classes_of_lines, classes_of_yaml
from eagleray.data.annotations.masks import pixels_of
from eagleray.data.labelled import read_objects
from tests.support.annotated import annotations_of, box, read_one, write, write_image
from tests.support.images import oriented


@pytest.mark.parametrize(
    ("image", "labels", "classes"),
    [
        ("images/1.png", "labels/1.txt", ("data.yaml", "names: [cell, debris]")),
        ("images/1.png", "labels/1.txt", ("data.yaml", "names: {0: cell, 1: debris}")),
        ("images/1.png", "labels/1.txt", ("classes.txt", "cell\ndebris\n")),
        ("images/a/1.png", "labels/a/1.txt", ("labels/classes.txt", "cell\ndebris")),
        ("1.png", "1.txt", ("classes.txt", "cell\ndebris")),
    ],
)
def test_layouts(tmp_path: Path, image: str, labels: str, classes: tuple[str, str]) -> None:
    write_image(tmp_path / image)
    write(tmp_path / labels, "1 0.5 0.5 0.25 0.2\n\n0 0.05 0.1 0.1 0.2\n")
    write(tmp_path / classes[0], classes[1])
    first, second = read_one(tmp_path)
    assert box(first) == ("debris", 15.0, 12.0, 10.0, 6.0)
    assert box(second) == ("cell", 0.0, 0.0, 4.0, 6.0)


@pytest.mark.parametrize(
    "layout", ["images/{}/1.png labels/{}/1.txt", "{}/images/1.png {}/labels/1.txt"]
)
def test_folders_of_splits_divide_the_data(tmp_path: Path, layout: str) -> None:
    write(tmp_path / "data.yaml", "names: [cell]")
    for split in ("train", "valid"):
        image, labels = layout.format(split, split).split()
        write_image(tmp_path / image)
        write(tmp_path / labels, "0 0.5 0.5 0.2 0.2")
    assert read_objects(str(tmp_path)).splits == ("train", "validation")


def test_boxes_are_shares_of_the_upright_image(tmp_path: Path) -> None:
    write(tmp_path / "images/1.jpg", oriented("jpeg", 6, width=30, height=40))
    write(tmp_path / "labels/1.txt", "0 0.5 0.5 0.5 0.5")
    write(tmp_path / "classes.txt", "cell")
    (one,) = read_one(tmp_path)
    assert box(one) == ("cell", 10.0, 7.5, 20.0, 15.0)


def test_a_polygon_is_a_mask_with_its_box(tmp_path: Path) -> None:
    write_image(tmp_path / "images/1.png")
    write(tmp_path / "labels/1.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5")
    write(tmp_path / "classes.txt", "cell")
    (one,) = read_one(tmp_path)
    assert box(one) == pytest.approx(("cell", 4.0, 3.0, 16.0, 12.0))
    assert one.mask is not None
    assert pixels_of(one.mask).sum() == 16 * 12


def test_an_image_without_a_file_has_no_objects_and_is_reported(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_image(tmp_path / f"images/{name}.png")
    write(tmp_path / "labels/1.txt", "0 0.5 0.5 0.5 0.5")
    write(tmp_path / "classes.txt", "cell")
    images = read_objects(str(tmp_path))
    assert annotations_of(images)["2.png"].objects == ()
    assert images.notes[-1] == (
        "Not left out: 1 image without a file of labels, read as an image without objects "
        f"({tmp_path}/images/2.png)."
    )


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("0 0.5 0.5 0 0.5", "1 box without an area"),
        ("0 1.5 0.5 0.1 0.5", "1 box outside of its image"),
        ("0 0.5 0.5 1.5 0.5", "1 box clipped to its image"),
        ("2 0.5 0.5 0.5 0.5", "1 label that is not in the list of classes"),
        ("-1 0.5 0.5 0.5 0.5", "1 label that is not in the list of classes"),
        ("cell 0.5 0.5 0.5 0.5", "1 object that cannot be read"),
        ("0 0.5 0.5 0.5", "1 object that cannot be read"),
        ("0 nan 0.5 0.5 0.5", "1 object that cannot be read"),
        ("0 0.5 0.5", "1 polygon of fewer than three points"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1", "1 mask that is damaged"),
        ("0 0.1 0.1 0.5 0.1 0.5 9e9", "1 mask that is damaged"),
    ],
)
def test_an_invalid_object_is_counted(tmp_path: Path, line: str, fault: str) -> None:
    write_image(tmp_path / "images/1.png")
    write(tmp_path / "labels/1.txt", f"1 0.5 0.5 0.5 0.5\n{line}\n")
    write(tmp_path / "classes.txt", "cell\ndebris")
    images = read_objects(str(tmp_path), max_invalid=0.5)
    assert fault in images.notes[-1]
    assert f"{tmp_path}/labels/1.txt, line 2" in images.notes[-1]


def test_an_unreadable_image_is_counted(tmp_path: Path) -> None:
    write_image(tmp_path / "images/1.png")
    write(tmp_path / "images/2.png", "not an image")
    for name in ("1", "2"):
        write(tmp_path / f"labels/{name}.txt", "0 0.5 0.5 0.5 0.5")
    write(tmp_path / "classes.txt", "cell")
    images = read_objects(str(tmp_path), max_invalid=0.5)
    assert list(annotations_of(images)) == ["1.png"]
    assert "1 image that cannot be read" in images.notes[-1]


def test_labels_without_a_list_of_classes_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "images/1.png")
    write(tmp_path / "labels/1.txt", "0 0.5 0.5 0.5 0.5")
    with pytest.raises(InputError, match=r"no list of classes; put a data\.yaml"):
        read_objects(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"names: [a, a]", "two classes have the name 'a'"),
        (b"names: {x: a}", "'x' is not the number"),
        (b"names: [[a]]", "the name of class 0 is not text"),
        (b"names: ['']", "class 0 has an empty name"),
        (b"names: []", "it has 0 names"),
        (b"nc: 3", "write a list"),
        (b"names: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
    ],
)
def test_invalid_lists_of_classes_are_refused(content: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        classes_of_yaml(content)


def test_names_of_classes_stay_text() -> None:
    assert classes_of_yaml(b"names: [yes, 1, 2020-01-01]") == {0: "yes", 1: "1", 2: "2020-01-01"}
    assert classes_of_lines("\ufeffcell\r\n b \n\n".encode()) == {0: "cell", 1: "b"}
    with pytest.raises(ValueError, match="not text in UTF-8"):
        classes_of_lines(b"\xff")
