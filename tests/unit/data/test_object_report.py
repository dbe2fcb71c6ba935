"""What an inspection says of labelled objects."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from eagleray.core.settings import read_settings
from eagleray.data.analysis import make_report
from eagleray.data.annotations.masks import mask_of_pixels
from eagleray.data.inspection import INSPECTION_SCHEMA, Inspection
from eagleray.data.job import open_inspection
from eagleray.data.labelled import LabelledImages
from eagleray.data.object_report import count_objects, describe_objects
from eagleray.data.page import render_data_report
from eagleray.data.spec import InspectSpec
from eagleray.data.split import Split
from eagleray.models.architectures import default_contract
from eagleray.tasks.annotation import Annotation, TrueObject
from tests.support.annotated import instances, voc, voc_object, write, write_image

SIDE = 200


def one(
    label: str, x: float, y: float, width: float, height: float, *, crowd: bool = False
) -> TrueObject:
    return TrueObject(label=label, x=x, y=y, width=width, height=height, crowd=crowd)


def text(*objects: TrueObject, width: int = SIDE, height: int = SIDE) -> str:
    return Annotation(width=width, height=height, objects=objects).to_text()


def split_of(*texts: str) -> tuple[Split, Inspection]:
    """Return images that are all of the training split, and an inspection of them."""
    uris = tuple(f"/images/{number}.png" for number in range(len(texts)))
    empty = LabelledImages((), (), ())
    rows = [
        {"width": SIDE, "height": SIDE, "num_bytes": 9, "format": "png", "sha256": f"{uri}"}
        for uri in uris
    ]
    table = pa.Table.from_pylist(rows, INSPECTION_SCHEMA)
    images = LabelledImages(uris, texts, ("1",) * len(texts))
    return Split(images, empty, empty), Inspection(uris, table)


def test_objects_are_counted_by_class_and_size() -> None:
    split = split_of(
        text(one("cell", 0, 0, 31, 33), one("cell", 50, 0, 32, 32), one("dust", 0, 50, 96, 96)),
        text(one("cell", 0, 0, 100, 95.99), one("cell", 0, 0, 9, 9, crowd=True)),
        text(),
    )
    report = count_objects(*split)
    assert report.as_json() == {
        "objects": 5,
        "masks": 0,
        "empty_images": 1,
        "sizes": {"small": 2, "medium": 1, "large": 2},
        "classes": {
            "cell": {"images": 2, "objects": 4, "crowds": 1, "small": 2, "medium": 1, "large": 1},
            "dust": {"images": 1, "objects": 1, "crowds": 0, "small": 0, "medium": 0, "large": 1},
        },
        "boxes_outside": {"count": 0, "first": ""},
        "duplicates": {"count": 0, "first": ""},
        "other_sizes": {"count": 0, "first": ""},
    }
    assert list(report.warnings()) == []


def test_the_size_of_an_object_is_that_of_its_mask() -> None:
    mask = mask_of_pixels(instances() == 7)
    large = TrueObject(label="cell", x=0, y=0, width=40, height=30, mask=mask)
    report = count_objects(*split_of(text(large, width=40, height=30)))
    assert (report.num_masks, report.sizes()["small"]) == (1, 1)


def test_void_pixels_are_no_objects() -> None:
    void = TrueObject(label="tent", x=0, y=0, width=9, height=9, crowd=True, kind="void")
    report = count_objects(*split_of(text(one("cell", 0, 0, 31, 33), void), text(void)))
    assert list(report.classes) == ["cell"]
    assert (report.num_objects, report.num_empty) == (1, 1)
    assert describe_objects(text(void)) == "no objects"


def test_duplicates_are_of_one_label_and_nearly_one_place() -> None:
    same, other = one("cell", 10, 10, 100, 100), one("dust", 10, 10, 100, 100)
    near, far = one("cell", 11, 10, 100, 100), one("cell", 13, 10, 100, 100)
    crowd = one("cell", 10, 10, 100, 100, crowd=True)
    report = count_objects(*split_of(text(same, other), text(same, near, far, same, crowd)))
    # Repeated are `near` (0.98), `far` (0.96 with `near`, 0.94 with `same`) and the second `same`.
    assert report.duplicates.count == 3
    assert report.duplicates.first == "/images/1.png"
    assert "3 objects are labelled twice" in next(report.warnings())


def test_many_objects_are_compared_in_parts() -> None:
    boxes = [one("cell", index % 40 * 5, index // 40 * 5, 4, 4) for index in range(1300)]
    report = count_objects(*split_of(text(*boxes, boxes[3], boxes[1250])))
    assert report.duplicates.count == 2


def test_boxes_outside_and_other_sizes_are_named() -> None:
    outside = one("cell", 190, 10, 11, 5)
    split = split_of(text(outside, one("cell", -1, 0, 5, 5)), text(width=SIDE, height=150))
    report = count_objects(*split)
    assert (report.outside.count, report.outside.first) == (2, "/images/0.png")
    assert report.other_sizes.count == 1
    assert report.other_sizes.first == "/images/1.png, of 200 x 200 pixels and not 200 x 150"
    sizes, boxes = report.warnings()
    assert sizes.startswith(
        "1 image is not of the size that the labels say; the first is /images/1"
    )
    assert boxes.startswith("2 boxes are not inside of the image; the first is in /images/0.png")


def test_the_page_has_a_row_for_each_class() -> None:
    split, inspection = split_of(text(one("<cell>", 0, 0, 9, 9)), text(one("dust", 0, 0, 300, 9)))
    report = make_report(split, inspection, "detection")
    assert "1 box is not inside of the image" in report.warnings[-1]
    page = render_data_report(report, {}, title="Data").decode()
    assert '<tr><td>&lt;cell&gt;</td><td class="number">1</td>' in page
    assert report.as_json()["objects"]["objects"] == 2


def test_other_tasks_have_no_objects() -> None:
    split, inspection = split_of("a", "b")
    report = make_report(split, inspection, "multiclass")
    assert report.objects is None
    assert "objects" not in report.as_json()


def test_labels_are_described_in_one_line() -> None:
    assert describe_objects(
        text(one("b", 0, 0, 1, 1), one("a", 0, 0, 1, 1), one("b", 0, 0, 1, 1))
    ) == ("2 b, 1 a")
    assert describe_objects(text()) == "no objects"


def test_objects_are_inspected_under_the_contract_that_trains_them(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        write_image(tmp_path / f"images/{name}.png")
        write(tmp_path / f"annotations/{name}.xml", voc(voc_object("cell", 1, 2, 4, 6)))
    fields = {"data": str(tmp_path), "task": "detection", "output": str(tmp_path / "page.html")}
    job = open_inspection(InspectSpec.make(fields), read_settings())
    trained = default_contract("detector/resnet18")
    assert (job.contract.resize, job.contract.size) == (trained.resize, (416, 416))
    named = open_inspection(InspectSpec.make({**fields, "contract": "fast"}), read_settings())
    assert named.contract.crop == (416, 416)
