"""COCO's panoptic segments: ids are colours, `isthing` decides, and faults are one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eagleray.core.errors import InputError
from eagleray.data.annotations.job import open_conversion, run_conversion
from eagleray.data.annotations.masks import pixels_of
from eagleray.data.annotations.spec import ConvertSpec
from eagleray.data.labelled import read_objects
from eagleray.data.object_report import describe_objects
from eagleray.tasks import Detection, Panoptic
from eagleray.tasks.annotation import Annotation, TrueObject, parse_annotation
from eagleray.tasks.detection.objects import CROWD as CROWD_KIND
from eagleray.tasks.segmentation.class_maps import decode_numbers
from eagleray.tasks.segmentation.object_maps import object_drawing
from tests.support.annotated import HEIGHT, WIDTH, annotations_of, write, write_image
from tests.support.images import encode
from tests.support.reporting import RecordingReporter

SKY, FIRST, SECOND, CROWD = 7, 300, 70_000, 5
CATEGORIES = [
    {"id": 1, "name": "cow", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
    {"id": 4, "name": "tent", "isthing": 1},
]


def ids() -> np.ndarray:
    """Return ids of a sky, two cows and a crowd of cows; the last row is void."""
    pixels = np.full((HEIGHT, WIDTH), SKY, np.int32)
    pixels[0:4, 0:5] = FIRST
    pixels[8:12, 10:20] = SECOND
    pixels[15:17, 0:6] = CROWD
    pixels[-1] = 0
    return pixels


def png(pixels: np.ndarray) -> bytes:
    colors = [pixels % 256, pixels // 256 % 256, pixels // 65536]
    return encode(Image.fromarray(np.stack(colors, axis=-1).astype(np.uint8)))


def segment(own: int, category: int, **others: Any) -> dict[str, Any]:
    return {"id": own, "category_id": category, "area": 1, "bbox": [0, 0, 1, 1], **others}


SEGMENTS = [
    segment(SKY, 9),
    segment(FIRST, 1),
    segment(SECOND, 1),
    segment(CROWD, 1, iscrowd=1),
]


def panoptic(
    folder: Path,
    segments: list[dict[str, Any]] | None = None,
    pixels: np.ndarray | None = None,
    name: str = "panoptic_val",
) -> Path:
    write_image(folder / "val/1.png")
    image = {"id": 3, "file_name": "1.png", "width": WIDTH, "height": HEIGHT}
    own = {
        "image_id": 3,
        "file_name": "1.png",
        "segments_info": SEGMENTS if segments is None else segments,
    }
    content = {"images": [image], "annotations": [own], "categories": CATEGORIES}
    write(folder / f"annotations/{name}.json", json.dumps(content))
    write(folder / f"annotations/{name}/1.png", png(ids() if pixels is None else pixels))
    return folder


def objects(folder: Path) -> dict[str, list[TrueObject]]:
    (annotation,) = annotations_of(read_objects(str(folder))).values()
    found: dict[str, list[TrueObject]] = {}
    for one in annotation.objects:
        found.setdefault(one.kind or "", []).append(one)
    return found


def inside(one: TrueObject) -> np.ndarray:
    assert one.mask is not None
    return pixels_of(one.mask)


def test_colours_are_ids_of_segments(tmp_path: Path) -> None:
    found = objects(panoptic(tmp_path))
    first, second, crowd = found["thing"]
    assert [one.label for one in found["thing"]] == ["cow"] * 3
    assert (inside(first) == (ids() == FIRST)).all()
    assert (inside(second) == (ids() == SECOND)).all()
    assert [one.crowd for one in found["thing"]] == [False, False, True]
    assert (inside(crowd) == (ids() == CROWD)).all()
    (sky,) = found["stuff"]
    assert (inside(sky) == (ids() == SKY)).all()
    (void,) = found["void"]
    assert void.crowd
    assert (inside(void) == (ids() == 0)).all()


def test_the_masks_are_no_unlisted_images(tmp_path: Path) -> None:
    notes = " ".join(read_objects(str(panoptic(tmp_path))).notes)
    assert "is read as COCO: 1 image with 4 objects of 2 classes" in notes
    assert "no JSON lists" not in notes


def test_the_categories_say_what_things_are(tmp_path: Path) -> None:
    single = [segment(SKY, 9), segment(FIRST, 4), segment(SECOND, 9), segment(CROWD, 9)]
    images = read_objects(str(panoptic(tmp_path, single)))
    task = Panoptic.from_labels(images.labels, images.uris)
    assert task.labels == ("background", "sky", "tent")
    assert task.things == ("tent",)


def test_void_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    images = read_objects(str(panoptic(tmp_path)))
    task = Panoptic.from_labels(images.labels, images.uris)
    background, cow, sky = task.encode(images.labels[0])
    assert (background, cow) == (0, 4 * 5 + 4 * 10)
    assert sky == (ids() == SKY).sum()


def test_void_teaches_no_label_and_is_drawn_in_no_colour(tmp_path: Path) -> None:
    images = read_objects(str(panoptic(tmp_path / "void", pixels=ids() * 0, segments=[])))
    void = images.labels[0]
    assert describe_objects(void) == "no objects"
    assert decode_numbers(object_drawing(void).mask or b"").max() == 0
    known = read_objects(str(panoptic(tmp_path / "known"))).labels[0]
    task = Panoptic.from_labels([known, void.replace("cow", "tent")])
    assert task.labels == ("background", "cow", "sky")
    assert sum(task.encode(void.replace("cow", "tent"))) == 0
    detector = Detection(labels=("cow", "sky"))
    assert [row[-1] for row in detector.encode(void.replace("cow", "tent"))] == [0, CROWD_KIND]
    numbers = decode_numbers(object_drawing(known).mask or b"")
    assert ((numbers == 0) == (ids() == 0)).all()


def test_pngs_are_read_in_the_order_of_the_images(tmp_path: Path) -> None:
    panoptic(tmp_path)
    content = json.loads((tmp_path / "annotations/panoptic_val.json").read_text())
    (image,), (own,) = content["images"], content["annotations"]
    names = [f"{number}.png" for number in range(50, 0, -1)]
    content["images"] = [{**image, "id": name, "file_name": name} for name in names]
    content["annotations"] = [{**own, "image_id": name, "file_name": name} for name in names]
    for name in names:
        write_image(tmp_path / f"val/{name}")
        pixels = ids()
        pixels[0, 0] = FIRST if int(name[:-4]) % 2 else SECOND
        write(tmp_path / f"annotations/panoptic_val/{name}", png(pixels))
    for name in ("30.png", "20.png"):
        (tmp_path / f"annotations/panoptic_val/{name}").write_bytes(b"none")
    write(tmp_path / "annotations/panoptic_val.json", json.dumps(content))
    images = read_objects(str(tmp_path))
    kept = [name for name in names if name not in ("30.png", "20.png")]
    assert [Path(uri).name for uri in images.uris] == kept
    areas = [
        inside(parse_annotation(text).objects[1])[0, 0] == int(Path(uri).stem) % 2
        for uri, text in zip(images.uris, images.labels, strict=True)
    ]
    assert all(areas)
    assert "panoptic_val.json, annotation 20 (30.png): " in " ".join(images.notes)
    assert "no JSON lists" not in " ".join(images.notes)


def test_a_label_of_two_kinds_is_refused() -> None:
    both = [
        TrueObject(label="tree", x=0, y=0, width=1, height=1, kind=kind)
        for kind in ("thing", "stuff")
    ]
    text = Annotation(width=4, height=4, objects=tuple(both)).to_text()
    with pytest.raises(InputError, match="'tree' is a thing in one image and stuff in another"):
        Panoptic.from_labels([text])


def test_categories_of_one_name_and_two_kinds_are_refused(tmp_path: Path) -> None:
    file = panoptic(tmp_path) / "annotations/panoptic_val.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 2, "name": "cow", "isthing": 0})
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="two categories 'cow', one of things and one of stuff"):
        read_objects(str(tmp_path))


def test_instances_are_read_where_both_are(tmp_path: Path) -> None:
    panoptic(tmp_path)
    content = {
        "images": [{"id": 3, "file_name": "1.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "cow"}],
    }
    write(tmp_path / "annotations/instances_val.json", json.dumps(content))
    assert list(objects(tmp_path)) == [""]
    named = annotations_of(read_objects(str(tmp_path / "annotations/panoptic_val.json")))
    assert len(next(iter(named.values())).objects) == 5


def missing(folder: Path) -> None:
    (folder / "annotations/panoptic_val/1.png").unlink()


def gray(folder: Path) -> None:
    content = encode(Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)))
    write(folder / "annotations/panoptic_val/1.png", content)


@pytest.mark.parametrize(
    ("segments", "pixels", "change", "message"),
    [
        (None, None, missing, r"\(1.png\): there is no such PNG in annotations/panoptic_val"),
        (None, None, gray, r"it has no colours \(L\), which ids are read from"),
        (None, ids()[:-2], None, rf"its PNG has {WIDTH} x {HEIGHT - 2} pixels, and its image"),
        (SEGMENTS[1:], None, None, f"its PNG has the segment {SKY}, and the JSON has not"),
        (
            [*SEGMENTS, segment(88, 9)],
            None,
            None,
            "the JSON has the segment 88, and its PNG has not",
        ),
        ([*SEGMENTS, SEGMENTS[0]], None, None, "two of its segments have the same id"),
        ([segment(0, 9)], None, None, "segments_info.0.id must be greater than or equal to 1"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    segments: Any, pixels: Any, change: Any, message: str, tmp_path: Path
) -> None:
    panoptic(tmp_path, segments, pixels)
    if change is not None:
        change(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_objects(str(tmp_path))
    assert "\n" not in str(caught.value)


def convert(data: Path, output: Path, to: str) -> dict[str, int]:
    fields = {"data": str(data), "output": str(output), "to": to, "copy_images": True}
    summary = run_conversion(open_conversion(ConvertSpec.make(fields)), RecordingReporter())
    known = (parse_annotation(text).known for text in read_objects(str(data)).labels)
    assert summary.num_objects == sum(map(len, known))
    return dict(summary.losses)


def test_segments_come_back_from_what_is_written(tmp_path: Path) -> None:
    data = panoptic(tmp_path / "data")
    losses = convert(data, tmp_path / "out", "panoptic")
    assert losses == {}
    assert (tmp_path / "out/annotations/panoptic.json").is_file()
    (uri,) = read_objects(str(tmp_path / "out")).uris  # and not the PNG of ids
    assert uri == str(tmp_path / "out/images/1.png")
    before, after = (objects(folder) for folder in (data, tmp_path / "out"))
    assert {kind: len(own) for kind, own in after.items()} == {"thing": 3, "stuff": 1, "void": 1}
    for kind in ("thing", "stuff", "void"):
        for one, other in zip(before[kind], after[kind], strict=True):
            assert (one.crowd, one.mask) == (other.crowd, other.mask)


def test_areas_and_boxes_are_written(tmp_path: Path) -> None:
    convert(panoptic(tmp_path / "data"), tmp_path / "out", "panoptic")
    content = json.loads((tmp_path / "out/annotations/panoptic.json").read_text())
    assert [(one["name"], one["isthing"]) for one in content["categories"]] == [
        ("cow", 1),
        ("sky", 0),
    ]
    segments = content["annotations"][0]["segments_info"]
    assert segments[1]["area"] == 20
    assert segments[1]["bbox"] == [0, 0, 5, 4]
    assert [one["iscrowd"] for one in segments] == [0, 0, 0, 1]


def test_kinds_survive_the_json_of_objects(tmp_path: Path) -> None:
    losses = convert(panoptic(tmp_path / "data"), tmp_path / "out", "coco")
    assert losses == {"void pixels of an image, which are a crowd": 1}
    found = objects(tmp_path / "out")
    assert {kind: len(own) for kind, own in found.items()} == {"thing": 3, "stuff": 2}


def test_stuff_becomes_one_segment_and_uncovered_pixels_void(tmp_path: Path) -> None:
    image = [segment(SKY, 9), segment(FIRST, 9), segment(SECOND, 1), segment(CROWD, 1)]
    data = panoptic(tmp_path / "data", image)
    convert(data, tmp_path / "coco", "coco")
    convert(tmp_path / "coco", tmp_path / "out", "panoptic")
    content = json.loads((tmp_path / "out/annotations/panoptic.json").read_text())
    segments = content["annotations"][0]["segments_info"]
    names = {one["id"]: one["name"] for one in content["categories"]}
    found = sorted((names[one["category_id"]], one["iscrowd"]) for one in segments)
    assert found == [("cow", 0), ("cow", 0), ("sky", 0), ("sky", 1)]
