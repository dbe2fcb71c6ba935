"""labelformat, an independent reader and writer of label formats, agrees with ours."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from labelformat.formats.coco import COCOObjectDetectionInput, COCOObjectDetectionOutput
from labelformat.formats.pascalvoc import (
    PascalVOCObjectDetectionInput,
    PascalVOCObjectDetectionOutput,
)
from labelformat.formats.yolov8 import YOLOv8ObjectDetectionInput, YOLOv8ObjectDetectionOutput
from labelformat.model.bounding_box import BoundingBoxFormat
from labelformat.model.object_detection import ImageObjectDetection

from eagleray.data.annotations.job import open_conversion, run_conversion
from eagleray.data.annotations.spec import ConvertSpec
from eagleray.data.labelled import read_objects
from eagleray.tasks.annotation import Annotation, TrueObject
from tests.support.annotated import HEIGHT, WIDTH, annotations_of, box, write, write_image
from tests.support.reporting import RecordingReporter

Boxes = dict[str, list[tuple[str, float, float, float, float]]]

OBJECTS = {
    "1.png": [("cell", 1.0, 2.0, 3.0, 4.0), ("debris", 10.5, 0.0, 29.5, 30.0)],
    "2.png": [("debris", 0.0, 0.0, 40.0, 30.0)],
    "3.png": [("cell", 20.0, 10.0, 1.0, 1.0)],
}


def theirs(labels: Iterable[ImageObjectDetection]) -> Boxes:
    found: Boxes = {}
    for label in labels:
        assert (label.image.width, label.image.height) == (WIDTH, HEIGHT)
        found[Path(label.image.filename).name] = [
            (one.category.name, *one.box.to_format(BoundingBoxFormat.XYWH)) for one in label.objects
        ]
    return found


def ours(location: Path) -> Boxes:
    found = annotations_of(read_objects(str(location)))
    return {name: [box(one) for one in annotation.objects] for name, annotation in found.items()}


def require_same(found: Boxes) -> None:
    assert found.keys() == OBJECTS.keys()
    for name, expected in OBJECTS.items():
        assert [one[0] for one in found[name]] == [one[0] for one in expected]
        for one, other in zip(found[name], expected, strict=True):
            assert one[1:] == pytest.approx(other[1:], abs=1e-3)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = []
    for name, boxes in OBJECTS.items():
        write_image(tmp_path / "photos" / name)
        objects = tuple(
            TrueObject(label=label, x=x, y=y, width=width, height=height)
            for label, x, y, width, height in boxes
        )
        text = Annotation(width=WIDTH, height=HEIGHT, objects=objects).to_text()
        rows.append(json.dumps({"path": f"photos/{name}", "label": text}) + "\n")
    write(tmp_path / "table.jsonl", "".join(rows))
    return tmp_path / "table.jsonl"


def convert(table: Path, to: str) -> Path:
    output = table.parent / to
    fields = {"data": str(table), "output": str(output), "to": to, "copy_images": True}
    run_conversion(open_conversion(ConvertSpec.make(fields)), RecordingReporter())
    return output


def test_they_read_what_we_write(table: Path) -> None:
    coco = convert(table, "coco")
    require_same(theirs(COCOObjectDetectionInput(coco / "annotations.json").get_labels()))
    voc = PascalVOCObjectDetectionInput(convert(table, "voc") / "annotations", "cell,debris")
    require_same(theirs(voc.get_labels()))
    yolo = YOLOv8ObjectDetectionInput(convert(table, "yolo") / "data.yaml", "train")
    require_same(theirs(yolo.get_labels()))


def test_we_read_what_they_write(table: Path, tmp_path: Path) -> None:
    source = COCOObjectDetectionInput(convert(table, "coco") / "annotations.json")
    for kind in ("theirs-coco", "theirs-voc", "theirs-yolo"):
        for name in OBJECTS:
            write_image(tmp_path / kind / "images" / name)
    COCOObjectDetectionOutput(tmp_path / "theirs-coco/labels.json").save(source)
    require_same(ours(tmp_path / "theirs-coco"))
    PascalVOCObjectDetectionOutput(tmp_path / "theirs-voc/annotations").save(source)
    require_same(ours(tmp_path / "theirs-voc"))
    YOLOv8ObjectDetectionOutput(tmp_path / "theirs-yolo/data.yaml", "train").save(source)
    require_same(ours(tmp_path / "theirs-yolo"))
