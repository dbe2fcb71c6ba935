"""What an inspection says of images, duplicates among them, and the report; no Ray."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from eagleray.core.errors import InputError
from eagleray.data.analysis import make_report
from eagleray.data.data_warnings import Remedies
from eagleray.data.inspection import (
    INSPECTION_SCHEMA,
    Inspection,
    gray_thumbnail,
    require_readable,
)
from eagleray.data.labelled import LabelledImages
from eagleray.data.near_duplicates import (
    NEAR_BITS,
    NearDuplicates,
    find_near_duplicates,
    group_duplicates,
    pairs_with_near,
)
from eagleray.data.page import render_data_report
from eagleray.data.report import DataReport
from eagleray.data.split import Split
from eagleray.imaging import decode, named_contract
from tests.support.images import encode, photo

FAST = named_contract("fast")
Change = Callable[[Image.Image], bytes]


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def picture(seed: int) -> Image.Image:
    """Return a picture of its own: patches of colour, larger than a thumbnail's cells."""
    small = Image.fromarray(photo(12, 9, seed=seed, noise=80.0))
    return small.resize((120, 90), Image.Resampling.BICUBIC)


def seen(images: Sequence[bytes]) -> Inspection:
    """Inspect encoded images without Ray."""
    rows = []
    for data in images:
        thumbnail = gray_thumbnail(decode(data, FAST).pixels)
        rows.append(row(hashlib.sha256(data).hexdigest(), thumbnail=thumbnail))
    return inspection(rows)


def near_rows(found: NearDuplicates) -> set[tuple[int, ...]]:
    """Return the rows that show nearly the same, group by group, where pictures are of two rows."""
    rows_of: dict[int, list[int]] = {}
    for index, number in enumerate(found.pictures.tolist()):
        if number >= 0:
            rows_of.setdefault(number, []).append(index)
    pairs = {
        tuple(sorted(rows_of[one] + rows_of[other]))
        for one, other in zip(found.left.tolist(), found.right.tolist(), strict=True)
    }
    return pairs | {tuple(rows) for rows in rows_of.values() if len(rows) > 1}


# --- near-duplicates --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: jpeg(picture, 40),
        lambda picture: jpeg(ImageEnhance.Brightness(picture).enhance(1.2)),
        lambda picture: jpeg(picture.resize((picture.width // 2, picture.height // 2))),
        lambda picture: encode(picture, "png"),
        lambda picture: jpeg(picture.crop((1, 1, picture.width, picture.height))),
    ],
    ids=["quality", "brightness", "size", "format", "crop"],
)
@pytest.mark.parametrize("num_others", [5, 60], ids=["few", "many"])
def test_a_changed_copy_is_a_near_duplicate_and_nothing_else_is(
    change: Change, num_others: int
) -> None:
    images = [jpeg(picture(seed)) for seed in range(num_others)]
    found = find_near_duplicates(seen([*images, change(picture(3))]))
    assert near_rows(found) == {(3, num_others)}


@pytest.fixture(scope="module")
def digits() -> list[Image.Image]:
    """The 1,797 handwritten digits of 8 x 8 pixels, of which many look alike."""
    from sklearn.datasets import load_digits

    return [
        Image.fromarray(np.round(pixels * 15).astype(np.uint8)) for pixels in load_digits().images
    ]


def test_similar_digits_are_no_near_duplicates_and_copies_of_them_are(
    digits: list[Image.Image],
) -> None:
    originals = [encode(digit, "png") for digit in digits]
    copies = [
        originals[5],
        jpeg(digits[700]),
        encode(ImageEnhance.Brightness(digits[1500]).enhance(0.9), "png"),
    ]
    found = near_rows(find_near_duplicates(seen([*originals, *copies])))
    assert found == {(5, 1797), (700, 1798), (1500, 1799)}


def test_frames_of_films_are_near_duplicates_although_each_has_many() -> None:
    generator = np.random.default_rng(0)
    images = []
    for film in range(10):
        still = np.asarray(picture(film)).astype(np.int16)
        for _ in range(15):
            noisy = still + generator.integers(-6, 7, still.shape)
            images.append(jpeg(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))))
    keys = group_duplicates(seen(images))
    assert len(set(keys)) == 10
    assert all(len(set(keys[start : start + 15])) == 1 for start in range(0, 150, 15))


def test_a_thumbnail_is_the_mean_of_each_cell() -> None:
    cells = np.arange(256, dtype=np.uint8).reshape(16, 16)
    large = np.ascontiguousarray(cells.repeat(4, axis=0).repeat(4, axis=1)[:, :, None])
    assert gray_thumbnail(large) == cells.tobytes()


def test_flat_pictures_have_no_thumbnail() -> None:
    white = np.full((64, 64, 3), 255, np.uint8)
    assert gray_thumbnail(white) is None
    noise = np.random.default_rng(0).integers(250, 256, (64, 64, 3), dtype=np.uint8)
    assert gray_thumbnail(noise) is None


def by_comparing_all(hashes: npt.NDArray[np.uint64]) -> set[tuple[int, int]]:
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None])
    left, right = np.nonzero(np.triu(distances <= NEAR_BITS, k=1))
    return set(zip(left.tolist(), right.tolist(), strict=True))


def by_bands(hashes: npt.NDArray[np.uint64], **options: int) -> set[tuple[int, int]]:
    found = [
        (min(pair), max(pair))
        for left, right in pairs_with_near(hashes, **options)
        for pair in zip(left.tolist(), right.tolist(), strict=True)
    ]
    assert len(found) == len(set(found))
    return set(found)


@given(st.data())
def test_near_hashes_are_found_as_by_comparing_all(data: st.DataObject) -> None:
    bases = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    changes = st.sets(st.integers(0, 63), max_size=NEAR_BITS + 2)
    flips = data.draw(st.lists(st.tuples(st.sampled_from(bases), changes), max_size=20))
    values = {base ^ sum(1 << bit for bit in bits) for base, bits in flips}
    hashes = np.array(sorted(values), np.uint64)
    assert by_bands(hashes) == by_comparing_all(hashes)


def test_many_equal_bands_are_compared_in_pieces() -> None:
    generator = np.random.default_rng(0)
    hashes = np.unique(generator.integers(0, 2**12, 300, dtype=np.uint64))
    assert by_bands(hashes, max_pairs=100) == by_comparing_all(hashes)


# --- inspections ------------------------------------------------------------------------------


def row(name: str, **change: Any) -> dict[str, Any]:
    """Return the row of a readable image whose content is named."""
    fine = {"width": 40, "height": 30, "format": "jpeg", "num_bytes": 1000}
    shown = {"sha256": name, "thumbnail": thumbnail(name)}
    return {"reason": None, "message": None, **fine, **shown, **change}


def thumbnail(name: str, steps: int = 0) -> bytes:
    """Return a thumbnail of its own; a step from it is a near-duplicate, two steps are none."""
    seed = int.from_bytes(name.encode().ljust(8, b".")[:8], "big")
    generator = np.random.default_rng(seed)
    plain, step = generator.normal(0, 30, 256), generator.normal(0, 4.5, 256)
    return (128 + plain + steps * step).clip(0, 255).astype(np.uint8).tobytes()


def broken(message: str = "the data end early") -> dict[str, Any]:
    return {"reason": "truncated", "message": message}


def inspection(rows: Sequence[dict[str, Any]]) -> Inspection:
    uris = tuple(f"/{index}.jpg" for index in range(len(rows)))
    return Inspection(uris, pa.Table.from_pylist(list(rows), INSPECTION_SCHEMA))


def test_too_many_unreadable_images_are_refused_by_the_first() -> None:
    seen = inspection([row("a"), broken(), row("b"), broken()])
    require_readable(seen, 0.5)
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        require_readable(seen, 0.01)
    for words in ("a fraction of 0.5, and the limit is 0.01", "/1.jpg: truncated: the data end"):
        assert words in str(caught.value)
    require_readable(inspection([]), 0.0)


def test_duplicates_of_duplicates_share_a_key() -> None:
    near, farther = (row(str(steps), thumbnail=thumbnail("a", steps)) for steps in (1, 2))
    rows = [row("a"), row("x", thumbnail=None), near, farther, row("d"), row("x"), broken()]
    assert near_rows(find_near_duplicates(inspection(rows))) == {(0, 2), (2, 3)}
    keys = group_duplicates(inspection(rows))
    assert keys[0] == keys[2] == keys[3] != ""
    assert keys[1] == keys[5] != keys[0]
    assert (keys[4], keys[6]) == ("", "")


# --- report -----------------------------------------------------------------------------------


def report_of(
    train: str,
    validation: str,
    test: str,
    rows: Sequence[dict[str, Any]],
    task: str = "multiclass",
    remedies: Remedies | None = None,
) -> DataReport:
    """Report on images whose labels are letters, in the order of the splits."""
    seen = inspection(rows)
    subsets, start = [], 0
    for labels in (train, validation, test):
        uris = seen.uris[start : start + len(labels)]
        subsets.append(LabelledImages(uris, tuple(labels), ("",) * len(labels)))
        start += len(labels)
    return make_report(Split(*subsets), seen, task, remedies=remedies)


def rows_named(names: str) -> list[dict[str, Any]]:
    return [row(name) for name in names]


def test_sound_data_have_no_warning() -> None:
    report = report_of("aabb", "ab", "ab", rows_named("12345678"))
    assert report.warnings == ()
    assert report.splits == {"train": 4, "validation": 2, "test": 2}
    assert report.classes["a"] == {"train": 2, "validation": 1, "test": 1}
    assert (report.imbalance, report.formats) == (1.0, {"jpeg": 8})
    assert report.sizes["width"].median == 40


def test_ten_times_as_many_images_are_an_imbalance() -> None:
    names = "".join(chr(0x100 + index) for index in range(33))
    report = report_of("a" * 28 + "b", "ab", "ab", rows_named(names))
    assert report.imbalance == 10.0
    (warning,) = report.warnings
    assert "Class 'a' has 30 images and class 'b' 3, 10 times fewer" in warning
    assert "train with --class-weights balanced, or add images" in warning
    weighted = Remedies(can_weight=False)
    report = report_of("a" * 28 + "b", "ab", "ab", rows_named(names), remedies=weighted)
    (warning,) = report.warnings
    assert warning.endswith("10 times fewer: look at the metrics of each class, or add images.")
    assert report_of("a" * 27 + "b", "ab", "ab", rows_named(names[:32])).warnings == ()


def test_a_split_without_a_class_is_a_warning() -> None:
    report = report_of("ab", "a", "ab", rows_named("12345"))
    assert report.warnings == ("The validation split has no image of 1 of 2 classes ('b').",)


def test_images_that_leak_are_counted_once_each() -> None:
    same = [row("1"), row("2"), row("3"), row("4")]
    near = row("5", thumbnail=thumbnail("2", 1))
    report = report_of("abab", "ab", "ab", [*same, row("6"), row("7"), row("1"), near])
    assert report.leaked == {"validation": (0, 0), "test": (1, 1)}
    (group,) = report.exact
    assert group.across_splits
    assert not group.contradict
    (pair,) = report.near
    assert {row.uri for row in pair.rows} == {"/1.jpg", "/7.jpg"}
    exact, nearly = report.warnings
    assert "1 image of the test split has the same bytes as images in other splits" in exact
    assert "/6.jpg, as /0.jpg of the train split" in exact
    assert "1 image of the test split has near-duplicates in other splits" in nearly
    for warning in report.warnings:
        assert warning.endswith("or keep them in one with --keep-duplicates-together.")


@pytest.mark.parametrize("divided", [(), ("validation",)])
def test_what_cannot_be_done_any_more_is_no_advice(divided: tuple[str, ...]) -> None:
    rows = rows_named("12341516")
    report = report_of("abab", "ab", "ab", rows, remedies=Remedies(divided=divided))
    validation, test = report.warnings
    assert ("--keep-duplicates-together" in validation) == bool(divided)
    assert test.endswith("of the train split: remove them from one of the splits.")


def test_duplicates_within_a_split_leak_nothing() -> None:
    report = report_of("aabb", "ab", "ab", rows_named("11234567"))
    assert report.leaked == {"validation": (0, 0), "test": (0, 0)}
    assert [group.across_splits for group in report.exact] == [False]
    assert report.warnings == ()


def test_flat_pictures_are_no_duplicates_of_each_other() -> None:
    rows = [row(str(index), thumbnail=None) for index in range(8)]
    assert report_of("aabb", "ab", "ab", rows).near == ()


def test_the_same_bytes_under_two_labels_are_a_contradiction() -> None:
    report = report_of("aabb", "ab", "ab", rows_named("12134567"))
    (warning,) = report.warnings
    assert "/0.jpg as 'a' and /2.jpg as 'b': correct the labels" in warning


def test_labels_of_a_multilabel_task_are_counted_one_by_one() -> None:
    subsets = [
        LabelledImages((f"/{row}.jpg",), (text,), ("",))
        for row, text in enumerate(("a|b", "b", ""))
    ]
    report = make_report(Split(*subsets), inspection(rows_named("123")), "multilabel")
    assert report.classes["b"] == {"train": 1, "validation": 1, "test": 0}
    assert report_of("12", "3", "4", rows_named("1234"), "regression").classes == {}


def test_the_page_shows_pairs_reasons_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.jpg" for name in ("one", "two", "three", "four<b>")]
    for number, file in enumerate(files):
        file.write_bytes(jpeg(Image.fromarray(photo(seed=number))))
    uris = tuple(map(str, files))
    near = row("2", thumbnail=thumbnail("1", 1))
    table = pa.Table.from_pylist([row("1"), near, row("3"), broken("<i>torn")], INSPECTION_SCHEMA)
    images = LabelledImages(uris, ("<cat>",) * 4, ("",) * 4)
    split = Split(images.take([0]), images.take([1]), images.take([2, 3]))
    report = make_report(split, Inspection(uris, table), "multiclass")
    page = render_data_report(report, {"data": "cats/"}, title="cats").decode()
    assert "Near-duplicates across splits" in page
    assert page.count("data:image/jpeg") == 2
    assert "&lt;i&gt;torn" in page
    assert "<i>torn" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "<cat>" not in page


def test_labels_that_may_be_one_class_are_a_warning() -> None:
    labels = ("Cat", "cat", "dog", "1", "1.0", "01", "fox-red", "fox red", "nan")
    uris = tuple(f"/{index}.jpg" for index in range(len(labels)))
    images = LabelledImages(uris, labels, ("",) * len(labels))
    split = Split(images, images.take([]), images.take([]))
    seen = inspection(rows_named("123456789"))
    report = make_report(split, seen, "multiclass", notes=("Skipped a file.",))
    numbers, cats, foxes, missing = report.warnings
    assert "'Cat' (1 image), 'cat' (1 image) differ only in how they are written" in cats
    assert "'01' (1 image), '1' (1 image), '1.0' (1 image)" in numbers
    assert "'fox red' (1 image), 'fox-red' (1 image)" in foxes
    assert "1 image has the label 'nan', which often stands for a missing value" in missing
    assert report.as_json()["notes"] == ["Skipped a file."]
    assert "<li>Skipped a file.</li>" in render_data_report(report, {}, title="x").decode()


def test_a_report_on_nothing_readable_is_a_page() -> None:
    report = report_of("ab", "ab", "ab", [broken()] * 6)
    assert report.sizes == {}
    assert b"6 of 6 images cannot be read" in render_data_report(report, {}, title="bad")


def test_scripts_get_what_the_page_shows() -> None:
    report = report_of("aab", "ab", "ab", [*rows_named("123145"), broken()])
    told = report.as_json()
    assert told["images"] == 7
    assert told["unreadable"][0]["reason"] == "truncated"
    assert [row["split"] for row in told["exact_duplicates"][0]] == ["train", "validation"]
    assert told["leaked"]["validation"] == {"exact_duplicates": 1, "near_duplicates": 0}
