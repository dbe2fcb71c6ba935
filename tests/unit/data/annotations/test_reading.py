"""What the format of a location is recognised from, and how `read_labelled` uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagleray.core.errors import InputError
from eagleray.data.labelled import read_labelled, read_objects
from eagleray.io.storage import PathPolicy
from eagleray.tasks import Multiclass
from tests.support.annotated import (
    annotations_of,
    coco,
    instances,
    read_one,
    voc,
    voc_object,
    write,
    write_image,
)
from tests.support.images import encode

TEXT = json.dumps({"width": 4, "height": 5, "objects": []})


@pytest.fixture
def objects_task(monkeypatch: pytest.MonkeyPatch) -> str:
    """A task whose labels are objects."""
    monkeypatch.setattr(Multiclass, "label_kind", "objects")
    return "multiclass"


def make_voc(folder: Path) -> None:
    write_image(folder / "images/1.png")
    write(folder / "annotations/1.xml", voc(voc_object("cell", 1, 2, 4, 6)))


def test_tasks_of_objects_read_label_formats(tmp_path: Path, objects_task: str) -> None:
    make_voc(tmp_path)
    images = read_labelled(str(tmp_path), task=objects_task)
    assert images.uris == (f"{tmp_path}/images/1.png",)
    assert images.versions[0]
    assert json.loads(images.labels[0])["objects"][0]["label"] == "cell"
    assert images.notes == (f"{tmp_path} is read as Pascal VOC: 1 image with 1 object of 1 class.",)


def test_a_table_has_the_json_already(tmp_path: Path, objects_task: str) -> None:
    table = tmp_path / "labels.jsonl"
    write(table, json.dumps({"path": "1.png", "label": TEXT}))
    assert read_labelled(str(table), task=objects_task).labels == (TEXT,)


def test_a_limit_is_passed_on(tmp_path: Path, objects_task: str) -> None:
    make_voc(tmp_path)
    bad = voc_object("cell", 4, 2, 4, 6)
    write(tmp_path / "annotations/1.xml", voc(voc_object("cell", 1, 2, 4, 6), bad))
    with pytest.raises(InputError, match="1 of 2 labelled objects"):
        read_labelled(str(tmp_path), task=objects_task)
    assert len(read_labelled(str(tmp_path), task=objects_task, max_invalid=0.5)) == 1


def test_columns_and_separators_are_refused(tmp_path: Path, objects_task: str) -> None:
    make_voc(tmp_path)
    with pytest.raises(InputError, match="leave out --label-columns and --separator"):
        read_labelled(str(tmp_path), task=objects_task, separator=",")
    with pytest.raises(InputError, match="columns are for tables"):
        read_labelled(str(tmp_path), task=objects_task, label_column="label")


def test_two_formats_are_refused(tmp_path: Path) -> None:
    make_voc(tmp_path)
    write(tmp_path / "labels.json", coco([{"bbox": [1, 2, 3, 4]}]))
    with pytest.raises(InputError, match="several formats: COCO, Pascal VOC; name the JSON"):
        read_objects(str(tmp_path))
    assert len(read_one(tmp_path / "labels.json")) == 1


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "cell/1.png")
    with pytest.raises(InputError, match="no labels of objects: it is neither a table nor"):
        read_objects(str(tmp_path))


def test_files_of_programs_and_systems_are_skipped(tmp_path: Path) -> None:
    make_voc(tmp_path)
    write(tmp_path / "annotations/.1.xml", "x")
    write(tmp_path / "__MACOSX/annotations/1.xml", "x")
    assert len(read_one(tmp_path)) == 1


def test_some_images_outside_of_splits_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "more"):
        make_voc(tmp_path / name)
    with pytest.raises(
        InputError, match=r"divided into train, validation .* such as those of 'more'"
    ):
        read_objects(str(tmp_path))


def test_splits_without_training_images_are_refused(tmp_path: Path) -> None:
    for name in ("test", "val"):
        make_voc(tmp_path / name)
    with pytest.raises(InputError, match="none is named train; name one of them"):
        read_objects(str(tmp_path))


def test_only_allowed_locations_are_read(tmp_path: Path) -> None:
    make_voc(tmp_path / "data")
    other = PathPolicy((str(tmp_path / "other"),))
    with pytest.raises(InputError, match="outside the locations"):
        read_objects(str(tmp_path / "data"), policy=other)
    write(tmp_path / "secret.xml", voc())
    (tmp_path / "data/annotations/2.xml").symlink_to(tmp_path / "secret.xml")
    with pytest.raises(InputError, match="outside the locations"):
        read_objects(str(tmp_path / "data"), policy=PathPolicy((str(tmp_path / "data"),)))


def test_object_stores_are_read() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/labelled/images/1.png", encode(instances()))
    memory.pipe("/labelled/instances/1.png", encode(instances()))
    try:
        assert len(read_one("memory://labelled")) == 2
    finally:
        memory.rm("/labelled", recursive=True)


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_task_of_whole_images_names_the_tasks_that_read_objects(
    tmp_path: Path, split: str
) -> None:
    write_image(tmp_path / f"{split}images/1.jpg")
    write(tmp_path / f"{split}annotations/1.xml", voc(voc_object("cell", 1, 2, 4, 6)))
    with pytest.raises(
        InputError, match=r"labels of objects \(Pascal VOC\); they are for tasks such as"
    ):
        read_labelled(str(tmp_path), task="multiclass")


def test_a_class_may_be_named_images(tmp_path: Path) -> None:
    write_image(tmp_path / "images/1.jpg")
    assert read_labelled(str(tmp_path)).labels == ("images",)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (
            {"labels/1.txt": "0 0.5 0.5 0.5 0.5", "classes.txt": "cell"},
            {"labels/2.txt": "0 0.5 0.5 0 0.5\n7 0.5 0.5 0.5 0.5"},
        ),
        (
            {"annotations/1.xml": voc(voc_object("cell", 1, 1, 9, 9))},
            {"annotations/2.xml": voc(voc_object("cell", 9, 9, 9, 12))},
        ),
        (
            {},
            {
                "labels.json": coco(
                    [
                        {"bbox": [1, 1, 8, 8]},
                        {"image_id": 2, "bbox": [1, 1, 0, 8]},
                        {"image_id": 2, "bbox": "damaged"},
                        {"image_id": 2, "bbox": [1, 1, 8, 8], "category_id": 9},
                    ],
                    names=["images/1.png", "images/2.png"],
                )
            },
        ),
    ],
    ids=["yolo", "voc", "coco"],
)
def test_an_image_whose_objects_are_all_invalid_is_left_out_and_not_taught_as_empty(
    tmp_path: Path, good: dict[str, str], bad: dict[str, str]
) -> None:
    for name in ("1", "2"):
        write_image(tmp_path / f"images/{name}.png")
    for path, content in {**good, **bad}.items():
        write(tmp_path / path, content)
    images = read_objects(str(tmp_path), max_invalid=0.8)
    assert list(annotations_of(images)) == ["1.png"]
    (note,) = [note for note in images.notes if note.startswith("Left out")]
    assert "1 image whose objects are all invalid (" in note
    assert "2" in note.rpartition("all invalid (")[2]
