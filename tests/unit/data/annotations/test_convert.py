"""Conversions: what each format carries comes back, and what it does not is counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eagleray.core.errors import InputError, OutputExistsError
from eagleray.data.annotations.job import ConvertSummary, open_conversion, run_conversion
from eagleray.data.annotations.masks import mask_of_pixels
from eagleray.data.annotations.spec import ConvertSpec
from eagleray.data.labelled import read_objects
from eagleray.tasks.annotation import Annotation, TrueObject
from tests.support.annotated import (
    HEIGHT,
    WIDTH,
    annotations_of,
    instances,
    voc,
    voc_object,
    write,
    write_image,
)
from tests.support.images import encode
from tests.support.reporting import RecordingReporter


def convert(data: Path, output: Path, to: str, *, copy_images: bool = True) -> ConvertSummary:
    fields = {"data": str(data), "output": str(output), "to": to, "copy_images": copy_images}
    return run_conversion(open_conversion(ConvertSpec.make(fields)), RecordingReporter())


def pixels(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    found = np.zeros((HEIGHT, WIDTH), bool)
    found[top:bottom, left:right] = True
    return found


def masked(label: str, *edges: int, crowd: bool = False) -> TrueObject:
    top, left, bottom, right = edges
    mask = mask_of_pixels(pixels(*edges))
    return TrueObject(
        label=label,
        x=float(left),
        y=float(top),
        width=float(right - left),
        height=float(bottom - top),
        crowd=crowd,
        mask=mask,
    )


def boxed(label: str, *sides: float, crowd: bool = False) -> TrueObject:
    x, y, width, height = sides
    return TrueObject(label=label, x=x, y=y, width=width, height=height, crowd=crowd)


RICH = (
    masked("cell", 0, 0, 4, 5),
    masked("debris", 8, 10, 20, 30),
    boxed("cell", 1.25, 2.5, 10.125, 3.0),
    boxed("cell", 5, 5, 10, 10, crowd=True),
)


def table(folder: Path, objects: tuple[TrueObject, ...], *, splits: bool = False) -> Path:
    """Write a table of three images, of which the second has no objects."""
    rows = []
    for name, split in (("1.png", "train"), ("2.png", "train"), ("3.png", "val")):
        write_image(folder / "photos" / name)
        found = Annotation(width=WIDTH, height=HEIGHT, objects=() if name == "2.png" else objects)
        row = {"path": f"photos/{name}", "label": found.to_text()}
        rows.append({**row, "split": split} if splits else row)
    path = folder / "table.jsonl"
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize(
    ("to", "objects", "kept", "losses"),
    [
        ("coco", RICH, RICH, {}),
        (
            "voc",
            RICH,
            tuple(one.model_copy(update={"mask": None}) for one in RICH[:3]),
            {"crowds": 2, "masks": 4},
        ),
        (
            "yolo",
            RICH,
            tuple(one.model_copy(update={"mask": None}) for one in RICH[:3]),
            {"crowds": 2, "masks": 4},
        ),
        (
            "instances",
            RICH,
            (masked("object", 0, 0, 4, 5), masked("object", 8, 10, 20, 30)),
            {"crowds": 2, "classes of objects": 6, "objects without a mask": 2},
        ),
        (
            "masks",
            RICH,
            RICH[:2],
            {"objects without a mask": 4},
        ),
    ],
)
def test_what_a_format_carries_comes_back(
    tmp_path: Path,
    to: str,
    objects: tuple[TrueObject, ...],
    kept: tuple[TrueObject, ...],
    losses: dict[str, int],
    splits: bool,
) -> None:
    data = table(tmp_path, objects, splits=splits)
    summary = convert(data, tmp_path / "out", to)
    assert summary.losses == losses
    assert (summary.num_images, summary.num_objects, summary.num_copied) == (3, 8, 3)
    images = read_objects(str(tmp_path / "out"))
    found = annotations_of(images)
    assert {name: one.objects for name, one in found.items()} == {
        "1.png": kept,
        "2.png": (),
        "3.png": kept,
    }
    assert images.splits == (("train", "train", "validation") if splits else ())
    names = sorted(str(path.relative_to(tmp_path / "out/images")) for path in images_of(tmp_path))
    assert names == (
        ["train/1.png", "train/2.png", "val/3.png"] if splits else ["1.png", "2.png", "3.png"]
    )


def images_of(folder: Path) -> list[Path]:
    return [path for path in (folder / "out/images").rglob("*") if path.is_file()]


def test_one_class_of_instances_keeps_its_name(tmp_path: Path) -> None:
    write_image(tmp_path / "in/images/1.png")
    write(tmp_path / "in/instances/1.png", encode(instances()))
    write(tmp_path / "in/classes.txt", "background")
    assert convert(tmp_path / "in", tmp_path / "out", "instances").losses == {}
    before, after = (read_objects(str(tmp_path / name)) for name in ("in", "out"))
    assert before.labels == after.labels
    assert {one.label for one in annotations_of(after)["1.png"].objects} == {"background"}


def test_overlapping_objects_are_painted_the_smaller_in_front(tmp_path: Path) -> None:
    objects = (masked("a", 5, 5, 8, 8), masked("a", 0, 0, 20, 20), masked("a", 5, 5, 8, 8))
    summary = convert(table(tmp_path, objects), tmp_path / "out", "instances")
    assert summary.losses == {"objects that others hide": 2}
    summary = convert(tmp_path / "table.jsonl", tmp_path / "classes", "masks")
    assert summary.losses == {"objects that are no longer told apart": 4}


def test_a_class_named_background_is_not_in_masks(tmp_path: Path) -> None:
    objects = (masked("Background", 0, 0, 2, 2), masked("cell", 5, 5, 8, 8))
    summary = convert(table(tmp_path, objects), tmp_path / "out", "masks")
    assert summary.losses == {"objects of the class background": 2}
    assert (tmp_path / "out/classes.txt").read_text() == "background\ncell\n"


def test_labels_alone_are_written_for_the_images_beside_them(tmp_path: Path) -> None:
    write_image(tmp_path / "in/1.png")
    write(tmp_path / "in/1.xml", voc(voc_object("cell", 1, 2, 4, 6)))
    summary = convert(tmp_path / "in", tmp_path / "out", "yolo", copy_images=False)
    assert (summary.num_copied, summary.num_files) == (0, 2)
    assert (
        tmp_path / "out/labels/1.txt"
    ).read_text() == "0 0.0625 0.1333333333 0.075 0.1333333333\n"
    assert not (tmp_path / "out/images").exists()


@pytest.mark.parametrize("to", ["masks", "instances"])
def test_boxes_are_not_written_as_masks(tmp_path: Path, to: str) -> None:
    data = table(tmp_path, (boxed("cell", 1, 2, 3, 4),))
    with pytest.raises(InputError, match="None of the 2 objects has a mask"):
        convert(data, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["voc", "instances", "masks"])
def test_names_of_several_lines_are_refused(tmp_path: Path, to: str) -> None:
    data = table(tmp_path, (masked("a\nb", 0, 0, 2, 2),))
    with pytest.raises(InputError, match="has a line break or a control character"):
        convert(data, tmp_path / "out", to)
    assert convert(data, tmp_path / "out", "yolo").classes == 1
    assert annotations_of(read_objects(str(tmp_path / "out")))["1.png"].labels == ("a\nb",)


def test_too_many_classes_for_masks_are_refused(tmp_path: Path) -> None:
    objects = tuple(masked(f"class {number:03}", 0, 0, 2, 2) for number in range(255))
    with pytest.raises(
        InputError, match="There are 255 classes, and masks of 8 bits have up to 254"
    ):
        convert(table(tmp_path, objects), tmp_path / "out", "masks")


def test_an_output_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    data = table(tmp_path, RICH)
    write(tmp_path / "out/x", "x")
    with pytest.raises(OutputExistsError, match="exists and is not empty"):
        convert(data, tmp_path / "out", "coco")


def test_images_with_one_file_of_labels_are_refused(tmp_path: Path) -> None:
    for name in ("1.png", "1.jpg"):
        write_image(tmp_path / "photos" / name)
    text = Annotation(width=WIDTH, height=HEIGHT).to_text()
    rows = [{"path": f"photos/{name}", "label": text} for name in ("1.png", "1.jpg")]
    write(tmp_path / "table.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="would have the same file of labels, 1"):
        convert(tmp_path / "table.jsonl", tmp_path / "out", "coco")


def test_an_absent_image_is_counted(tmp_path: Path) -> None:
    data = table(tmp_path, RICH)
    (tmp_path / "photos/2.png").unlink()
    summary = convert(data, tmp_path / "out", "coco")
    assert summary.num_copied == 2
    assert summary.losses == {"images that cannot be read, which are not copied": 1}


def test_without_copies_it_says_where_the_images_belong(tmp_path: Path) -> None:
    write_image(tmp_path / "in/images/1.png")
    write(tmp_path / "in/annotations/1.xml", voc(voc_object("cell", 1, 2, 4, 6)))
    output = tmp_path / "out"
    summary = convert(tmp_path / "in", output, "yolo", copy_images=False)
    assert f"once the images lie in {output}/images under" in summary.finding
    assert "(the first is 1.png); --copy-images puts them there." in summary.finding
    write_image(output / "images/1.png")
    assert read_objects(str(output)).uris == (f"{output}/images/1.png",)
    assert convert(tmp_path / "in", tmp_path / "copied", "yolo").finding == ""
