"""Labelled images from trees and tables: what is read, and what is refused in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.core.errors import InputError, UserError
from eagleray.data.labelled import (
    LabelledImages,
    encode_labels,
    join_images,
    read_labelled,
    require_enough,
)
from eagleray.data.split import (
    describe_missing_splits,
    require_no_splits,
    require_single_test_set,
    split_images,
)
from eagleray.data.split_file import take_named_split
from eagleray.imaging import named_contract
from eagleray.io.fetch import fetch_image
from eagleray.tasks import make_task
from tests.support.labelled import labelled

LABEL = st.text("abcé ", min_size=1, max_size=4).map(str.strip).filter(bool)


def write(path: Path, content: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [list(rows[0]), *[[str(value) for value in row.values()] for row in rows]]
    write(path, "".join(",".join(line) + "\n" for line in lines))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


# --- trees ------------------------------------------------------------------------------------


def test_a_tree_labels_images_by_their_folder(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/deep/2.png", "dog/3.png", "dog/.hidden.png"):
        write(tmp_path / name)
    images = read_labelled(str(tmp_path))
    assert images.labels == ("cat", "cat", "dog")
    assert images.uris[1] == str(tmp_path / "cat/deep/2.png")
    assert all(images.versions)
    assert images.attributes == {}


def test_the_digest_changes_with_content_and_labels_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "cat/1.png", "one")
    write(tmp_path / "dog/2.png", "two")
    before = read_labelled(str(tmp_path))
    assert read_labelled(str(tmp_path)).digest == before.digest
    write(tmp_path / "cat/1.png", "other")
    assert read_labelled(str(tmp_path)).digest != before.digest
    relabelled = LabelledImages(before.uris, ("dog", "dog"), before.versions)
    assert relabelled.digest != before.digest
    described = LabelledImages(before.uris, before.labels, before.versions, {"camera": ("a", "b")})
    assert described.digest == before.digest


def images_in(folder: Path, *names: str) -> None:
    for name in names:
        write(folder / name)


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Training", "VALID", "testing"), ("TRAIN", "dev", "eval")],
)
def test_folders_named_as_splits_divide_the_data(
    tmp_path: Path, train: str, validation: str, test: str
) -> None:
    for folder, count in ((train, 5), (validation, 2), (test, 3)):
        images_in(tmp_path, *(f"{folder}/{label}/{n}.png" for n in range(count) for label in "ab"))
    images = read_labelled(str(tmp_path))
    assert set(images.labels) == {"a", "b"}
    divided = split_images(
        images, stratify=True, validation_fraction=0.1, test_fraction=0.2, seed=0
    )
    for folder, subset in zip((train, validation, test), divided.by_name.values(), strict=True):
        assert {uri.split("/")[-3] for uri in subset.uris} == {folder}
    assert {name: len(subset) for name, subset in divided.by_name.items()} == {
        "train": 10,
        "validation": 4,
        "test": 6,
    }
    (said,) = images.notes
    assert f"{train} is train (10)" in said
    assert f"{validation} is validation (4)" in said
    assert f"{test} is test (6)" in said


def test_a_split_that_folders_lack_is_taken_from_those_to_train_on(tmp_path: Path) -> None:
    images_in(tmp_path, *(f"train/{label}/{n}.png" for n in range(20) for label in "ab"))
    images_in(tmp_path, "test/a/x.png", "test/b/x.png")
    images = read_labelled(str(tmp_path))
    (said,) = describe_missing_splits(images, has_own_test=False)
    assert said == "They have no validation split, which is taken from train."
    divided = split_images(
        images, stratify=True, validation_fraction=0.1, test_fraction=0.2, seed=0
    )
    assert {name: len(subset) for name, subset in divided.by_name.items()} == {
        "train": 36,
        "validation": 4,
        "test": 2,
    }
    assert all("/test/" in uri for uri in divided.test.uris)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    images_in(tmp_path, "bus/1.png", "car/1.png", "train/1.png")
    images = read_labelled(str(tmp_path))
    assert images.labels == ("bus", "car", "train")
    assert images.splits == ()


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (("train/1.png", "test/2.png"), "'test' holds images without class folders"),
        (("train/a/1.png", "val/a/2.png", "extra/3.png"), "beside extra: name one as the data"),
        (("train/a/1.png", "extra/b/3.png"), "beside extra: name one as the data"),
        (("train/a/1.png", "val/a/2.png", "dev/a/3.png"), "would both be the validation split"),
        (("val/a/1.png", "test/a/2.png"), "has no folder named train"),
    ],
)
def test_folders_with_ambiguous_names_are_refused(
    tmp_path: Path, files: tuple[str, ...], sentence: str
) -> None:
    images_in(tmp_path, *files)
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        read_labelled(str(tmp_path))
    assert sentence in str(caught.value)


def test_one_split_is_taken_from_data_with_splits(tmp_path: Path) -> None:
    images_in(tmp_path, "train/a/1.png", "train/b/1.png", "Test/a/2.png")
    images = read_labelled(str(tmp_path))
    assert take_named_split(images, "test", "data").uris == (f"{tmp_path}/Test/a/2.png",)
    with pytest.raises(InputError, match="has no validation split: it has train and test"):
        take_named_split(images, "validation", "data")
    with pytest.raises(InputError, match=f"name one of them, as in {tmp_path}/train"):
        require_no_splits(images, str(tmp_path))
    with pytest.raises(InputError, match="leave --test-data out"):
        require_single_test_set(images, str(tmp_path), "other/")


def test_what_is_no_image_by_its_name_is_skipped_and_reported(tmp_path: Path) -> None:
    images_in(tmp_path, "LICENSE", "LICENSE.txt", "README.md", "labels.csv", "cat/notes.txt")
    images_in(tmp_path, "Thumbs.db", ".DS_Store", "cat/.hidden.png", "__MACOSX/cat/1.png")
    images_in(tmp_path, "cat/_DSC0001.JPG", "cat/without-extension", "_background/_MG_4711.jpg")
    images_in(tmp_path, "dog/about.json")
    (tmp_path / "cow").mkdir()
    images = read_labelled(str(tmp_path))
    assert images.labels == ("_background", "cat", "cat")
    assert [uri.split("/")[-1] for uri in images.uris] == [
        "_MG_4711.jpg",
        "_DSC0001.JPG",
        "without-extension",
    ]
    others, empty, hidden = images.notes
    assert "Skipped 6 files whose names are not those of images (LICENSE, " in others
    assert hidden.startswith(
        "4 files were skipped: 2 hidden (such as .DS_Store), 1 of an operating"
    )
    assert "2 folders hold no images, and so no class: cow, dog." in empty


def test_linked_class_folders_are_classes(tmp_path: Path) -> None:
    images_in(tmp_path, "elsewhere/1.png", "data/dog/2.png")
    (tmp_path / "data/cat").symlink_to(tmp_path / "elsewhere")
    assert read_labelled(str(tmp_path / "data")).labels == ("cat", "dog")


def test_folder_names_that_differ_around_or_in_unicode_form_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    images_in(tmp_path, f"{composed}/1.png", f"{decomposed}/2.png", "cat /3.png", "cat/4.png")
    images = read_labelled(str(tmp_path))
    assert sorted(images.labels) == [composed, composed, "cat", "cat"]
    (said,) = images.notes
    assert "changes 2 of them" in said


def test_a_folder_around_the_class_folders_is_no_class(tmp_path: Path) -> None:
    images_in(tmp_path, *(f"images/{label}/{n}.png" for n in range(3) for label in ("cat", "dog")))
    with pytest.raises(InputError, match=rf"are meant \(cat, dog\), name {tmp_path}/images"):
        require_enough(read_labelled(str(tmp_path)), "multiclass", str(tmp_path))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_a_tree_too(tmp_path: Path, kind: str) -> None:
    images_in(tmp_path / "f", "train/cat/1.png", "train/dog/deep/2.png", "test/cat/3.png", "a.txt")
    shutil.make_archive(str(tmp_path / "flowers"), kind, tmp_path / "f")
    images = read_labelled(str(tmp_path / f"flowers.{kind}"))
    found = sorted(zip(images.labels, images.splits, images.uris, strict=True))
    here = "./" * (kind == "tar")  # as Python's own archives have it
    container = f"{tmp_path}/flowers.{kind}"
    assert found == [
        ("cat", "test", f"{kind}://{here}test/cat/3.png::{container}"),
        ("cat", "train", f"{kind}://{here}train/cat/1.png::{container}"),
        ("dog", "train", f"{kind}://{here}train/dog/deep/2.png::{container}"),
    ]
    assert all(images.versions)


def test_archives_and_tables_in_a_tree_are_no_images(tmp_path: Path) -> None:
    images_in(tmp_path, "cat/1.png", "dog/2.png", "flowers.tgz", "cat/cats.zip", "dog/rows.parquet")
    images = read_labelled(str(tmp_path))
    assert images.labels == ("cat", "dog")
    assert "Skipped 3 files whose names are not those of images" in images.notes[0]


def test_a_pattern_is_a_tree_below_its_wildcards(tmp_path: Path) -> None:
    images_in(tmp_path, "cat/1.png", "cat/2.jpg", "dog/3.png")
    images = read_labelled(f"{tmp_path}/*/*.png")
    assert images.labels == ("cat", "dog")


# --- tables -----------------------------------------------------------------------------------


def test_a_table_may_hold_the_images_themselves(tmp_path: Path) -> None:
    cells = [{"bytes": b"one", "path": None}, {"bytes": b"two", "path": None}]
    table = pa.table({"image": cells, "label": pa.array([0, 1]), "camera": ["north", "south"]})
    pq.write_table(table, tmp_path / "t.parquet")
    images = read_labelled(str(tmp_path / "t.parquet"))
    assert images.labels == ("0", "1")
    assert images.attributes == {"camera": ("north", "south")}
    assert all(images.versions)
    contract = named_contract("fast")
    assert [fetch_image(uri, contract) for uri in images.uris] == [b"one", b"two"]


def test_a_folder_of_tables_is_one_table(tmp_path: Path) -> None:
    write_csv(tmp_path / "d/1.csv", [{"path": "a.png", "label": "x"}])
    write_csv(tmp_path / "d/2.csv", [{"path": "b.png", "label": "y", "day": "3"}])
    images = read_labelled(str(tmp_path / "d"))
    assert images.uris == (f"{tmp_path}/d/a.png", f"{tmp_path}/d/b.png")
    assert (images.labels, images.attributes) == (("x", "y"), {"day": ("", "3")})
    assert read_labelled(f"{tmp_path}/d/*.csv").digest == images.digest


@pytest.mark.parametrize("kind", WRITERS)
def test_a_table_has_locations_labels_and_attributes(tmp_path: Path, kind: str) -> None:
    rows = [
        {"file": "a.png", "class": "007", "camera": "north", "day": 3},
        {"file": "/b.png", "class": "8", "camera": "", "day": 4},
    ]
    WRITERS[kind](tmp_path / f"t.{kind}", rows)
    write(tmp_path / "a.png")
    images = read_labelled(str(tmp_path / f"t.{kind}"))
    assert images.uris == (f"{tmp_path}/a.png", "/b.png")
    assert images.labels == ("007", "8")
    assert images.attributes == {"camera": ("north", ""), "day": ("3", "4")}
    assert images.versions[0] == str((tmp_path / "a.png").stat().st_mtime_ns)
    assert images.versions[1] == ""  # not there, which shows when it is read


def test_types_of_parquet_become_text_and_bytes_are_skipped(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uri": pa.array(["a", None, "c"]),
            "label": pa.array(["x", "y", "x"]).dictionary_encode(),
            "score": pa.array([0.5, None, 2.0]),
            "seen": pa.array([True, False, None]),
            "boxes": pa.array([[1, 2], [], None]),
            "mask": pa.array([b"\0", b"\1", None]),
            "thumbnail": pa.array([{"bytes": b"\0", "path": "p"}] * 3),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    images = read_labelled(str(tmp_path / "t.parquet"))
    assert images.uris == (f"{tmp_path}/a", "", f"{tmp_path}/c")
    assert images.labels == ("x", "y", "x")
    assert images.attributes == {
        "score": ("0.5", "", "2"),
        "seen": ("true", "false", ""),
        "boxes": ("[1, 2]", "[]", ""),
    }


@pytest.mark.parametrize("kind", WRITERS)
def test_a_column_of_zeros_and_ones_for_each_label(tmp_path: Path, kind: str) -> None:
    values: list[tuple[Any, Any]] = [(1, True), (0, True), (0, False)]
    rows = [
        {"path": f"{index}.png", "red": red, "very round": round_, "x": "-"}
        for index, (red, round_) in enumerate(values)
    ]
    WRITERS[kind](tmp_path / f"t.{kind}", rows)
    images = read_labelled(str(tmp_path / f"t.{kind}"), label_columns=("red", "very round"))
    assert images.labels == ("red|very round", "very round", "")
    assert set(images.attributes) == {"x"}


@given(st.lists(st.lists(LABEL, max_size=4), min_size=1, max_size=8))
def test_labels_between_any_separator_are_the_same_labels(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.jsonl"
    write_jsonl(path, [{"uri": "a", "label": " ; ".join(labels)} for labels in rows])
    texts = read_labelled(str(path), separator=";").labels
    assert texts == tuple("|".join(dict.fromkeys(labels)) for labels in rows)


def test_rows_of_two_tables_are_joined() -> None:
    one = LabelledImages(("a",), ("x",), ("1",), {"camera": ("north",)})
    other = LabelledImages(("b",), ("y",), ("2",), {"day": ("3",)})
    joined = join_images(one, other)
    assert joined.uris == ("a", "b")
    assert joined.attributes == {"camera": ("north", ""), "day": ("", "3")}


def test_a_column_named_split_divides_the_data(tmp_path: Path) -> None:
    rows = [
        {"path": f"{split}{number}.png", "label": "ab"[number % 2], "Split": split, "film": film}
        for number in range(4)
        for split, film in (("Train", f"film {number % 3}"), ("val", "other"), ("TEST", ""))
    ]
    write_csv(tmp_path / "t.csv", rows)
    images = read_labelled(str(tmp_path / "t.csv"))
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.2}
    divided = split_images(
        images, stratify=True, seed=0, groups=images.attributes["film"], **fractions
    )
    assert {name: len(subset) for name, subset in divided.by_name.items()} == dict.fromkeys(
        ("train", "validation", "test"), 4
    )
    assert all("TEST" in uri for uri in divided.test.uris)
    assert "by the column 'Split' of" in images.notes[0]
    assert "train 4, validation 4, test 4" in images.notes[0]
    with pytest.raises(InputError, match="name data of one of them"):
        require_no_splits(images, str(tmp_path / "t.csv"))
    apart = ["film"] * len(images)
    with pytest.raises(InputError, match="Rows of group 'film' are to stay together"):
        split_images(images, stratify=True, seed=0, groups=apart, **fractions)


def test_a_column_named_split_that_names_none_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", "path,label,split\na,x,train\nb,y,banana\n")
    images = read_labelled(str(tmp_path / "t.csv"))
    assert images.splits == ()
    assert "has 'banana', which is not a split, so it does not divide the data" in images.notes[0]


NESTED = pa.list_(pa.string())


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([["a", "b"], [], ["b"]]),
        pa.array([["a", "b"], [], ["b"]], pa.large_list(pa.string())),
        pa.array([["a", "b", "a"], ["b", "b", "b"], ["b"] * 3], pa.list_(pa.string(), 3)),
        pa.array([["a", " b"], [""], ["b\u00a0"]]),
        pa.array([["a", "b"], [], ["b"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        pa.array(['["a", "b"]', "[]", '["b"]']),
        pa.array(["['a', 'b']", "[]", "['b']"]),
        pa.array(['["a", "b"]', "b", "b"]).dictionary_encode(),
    ],
    ids=["list", "large", "fixed", "blanks", "dictionary", "json", "python", "mixed"],
)
def test_a_list_in_a_cell_is_several_labels(tmp_path: Path, labels: pa.Array) -> None:
    table = pa.table({"path": ["1.png", "2.png", "3.png"], "label": labels})
    pq.write_table(table, tmp_path / "t.parquet")
    texts = read_labelled(str(tmp_path / "t.parquet"), task="multilabel").labels
    assert texts[0] == "a|b"
    assert texts[1] in ("", "b")
    assert texts[2] == "b"
    assert make_task("multilabel", texts).labels == ("a", "b")


def test_numbers_in_lists_are_the_labels_that_they_are_elsewhere(tmp_path: Path) -> None:
    rows = [{"path": "1.png", "label": [1, 2.0, 0.5, True]}, {"path": "2.png", "label": [7]}]
    write_jsonl(tmp_path / "t.jsonl", rows)
    assert read_labelled(str(tmp_path / "t.jsonl")).labels == ("1|2|0.5|true", "7")


def test_results_of_a_multilabel_model_are_read_by_all_their_labels(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uri": ["/1.png", "/2.png", "/3.png"],
            "label": ["a", None, None],
            "labels": pa.array([["a", "b"], None, []], NESTED),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    images = read_labelled(str(tmp_path / "t.parquet"), task="multilabel")
    assert (images.uris, images.labels) == (("/1.png", "/3.png"), ("a|b", ""))
    chosen, skipped = images.notes
    assert "Of the columns labels, label of" in chosen
    assert "'labels' is read; --label-column names another one" in chosen
    assert "Skipped 1 of 3 rows" in skipped


def test_an_image_that_failed_is_no_image_without_labels(tmp_path: Path) -> None:
    table = 'uri,labels,status\n/1.png,"[""a""]",ok\n/2.png,,failed\n/3.png,[],ok\n'
    write(tmp_path / "t.csv", table)
    images = read_labelled(str(tmp_path / "t.csv"), task="multilabel")
    assert (images.uris, images.labels) == (("/1.png", "/3.png"), ("a", ""))
    assert images.attributes == {"status": ("ok", "ok")}


def test_numbers_and_missing_ones_of_parquet_are_labels_as_in_other_tables(tmp_path: Path) -> None:
    def read(labels: pa.Array) -> tuple[str, ...]:
        pq.write_table(pa.table({"path": ["a", "b"], "label": labels}), tmp_path / "t.parquet")
        return read_labelled(str(tmp_path / "t.parquet")).labels

    assert read(pa.array([1, 2])) == read(pa.array([1.0, 2.0])) == ("1", "2")
    assert read(pa.array([1, 2]).dictionary_encode()) == ("1", "2")
    for value in (None, float("nan")):
        with pytest.raises(InputError, match=r"Row 2 of .* has no label"):
            read(pa.array([1.0, value]))
    with pytest.raises(InputError, match="holds records, not labels"):
        read(pa.array([{"x": 1}, {"x": 2}]))
    with pytest.raises(InputError, match=r"Column .label. of .* holds bytes, where text is read"):
        read(pa.array([b"x", b"y"]))


def test_a_list_of_one_label_is_that_label_for_a_classifier(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [{"path": "1.png", "label": [name]} for name in "ab"])
    assert read_labelled(str(tmp_path / "t.jsonl"), task="multiclass").labels == ("a", "b")


def test_labels_are_trimmed_and_in_one_unicode_form(tmp_path: Path) -> None:
    written = ["cat", " cat", "cat\u00a0", "\ufeffcat", "cafe\u0301", "caf\u00e9", "Cat"]
    write_jsonl(tmp_path / "t.jsonl", [{"path": "1.png", "label": label} for label in written])
    images = read_labelled(str(tmp_path / "t.jsonl"))
    assert images.labels == ("cat",) * 4 + ("caf\u00e9",) * 2 + ("Cat",)
    (said,) = images.notes
    assert said.endswith("which changes 4, the first ' cat' to 'cat'.")


def test_a_label_that_differs_in_how_it_is_written_is_named_with_the_one_meant() -> None:
    task = make_task("multiclass", ("1", "Golden Retriever", "cat"))
    for text, known in (("1.0", "1"), ("golden_retriever", "Golden Retriever"), ("CAT", "cat")):
        with pytest.raises(InputError, match=f"It has '{known}'"):
            encode_labels(task, LabelledImages(("/1.png",), (text,), ("",)))
    with pytest.raises(InputError, match=r"'dog' is not a label of this model\.$"):
        encode_labels(task, LabelledImages(("/1.png",), ("dog",), ("",)))


def test_a_label_error_names_the_row_of_the_table(tmp_path: Path) -> None:
    rows = [{"path": f"{row}.png", "label": label} for row, label in enumerate(("1", "2", "", "x"))]
    write_jsonl(tmp_path / "t.jsonl", rows)
    images = read_labelled(str(tmp_path / "t.jsonl"))
    assert images.rows == (1, 2, 3, 4)
    here = re.escape(str(tmp_path))
    with pytest.raises(InputError, match=rf"'', the label of row 3, {here}/2.png, is not a number"):
        make_task("regression", images.labels, images.places)
    with pytest.raises(InputError, match=rf"A row \(row 3, {here}/2.png\) has an empty label"):
        make_task("multiclass", images.labels, images.places)
    task = make_task("multiclass", ("1", "2"))
    with pytest.raises(InputError, match=rf"The label of row 4, {here}/3.png does not fit"):
        encode_labels(task, images.take([0, 1, 3]))
    both = join_images(images.take([3]), images.take([0]))
    with pytest.raises(InputError, match="The label of row 4, "):
        encode_labels(task, both)
    with pytest.raises(InputError, match=rf"has 1 image \(row 1, {here}/0.png\); at"):
        require_enough(images.take([0, 1, 3]), "multiclass", "t.jsonl")


def test_images_of_a_folder_have_no_row() -> None:
    images = labelled(a=1)
    assert (images.rows, images.place(0)) == ((), "/images/0.png")


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "location", "options", "sentence"),
    [
        ({}, "nowhere", {}, "There is no folder"),
        ({}, "nowhere.csv", {}, "there is no such file"),
        ({"empty/.keep": ""}, "empty", {}, "holds no files; name one that holds images. 1 file"),
        ({"empty/a.csv": ""}, "empty", {}, "is empty; a table has a line of column names"),
        ({"tree/a.txt": "", "tree/b.toml": ""}, "tree", {}, "class folders. Skipped 2 files"),
        ({"tree/loose.png": ""}, "tree", {}, "no class folders, and images such as 'loose.png'"),
        (
            {"tree/loose.png": "", "tree/a/b.png": ""},
            "tree",
            {},
            "tree holds beside class folders 'loose.png'",
        ),
        ({"tree/a/b.png": ""}, "tree", {"separator": ","}, "separators are for tables"),
        ({"t.csv": "path,kind\na,b\n"}, "t.csv", {}, "has no column named label"),
        ({"t.csv": "path,label\na,b\n"}, "t.csv", {"label_column": "lable"}, "Nearest: label"),
        ({"t.csv": "x,label\na,b\n"}, "t.csv", {}, "has no column named uri or path"),
        (
            {"t.csv": "path,red\na,1\n"},
            "t.csv",
            {"label_columns": ("red", "rond")},
            "No column of",
        ),
        (
            {"t.csv": "path,red\na,1\nb,yes\n"},
            "t.csv",
            {"label_columns": ("red",)},
            "Row 2 of {folder}/t.csv ({folder}/b) has 'yes' in column 'red'",
        ),
        (
            {"t.csv": "path,a|b\na,1\n"},
            "t.csv",
            {"label_columns": ("a|b",)},
            "cannot name a label",
        ),
        (
            {"t.csv": "path,label\na,b\n"},
            "t.csv",
            {"label_columns": ("label",), "label_column": "label"},
            "name one kind of the two",
        ),
        (
            {"t.csv": 'path,label\na,"x,y|z"\n'},
            "t.csv",
            {"separator": ","},
            "none may contain '|'",
        ),
        (
            {"t.jsonl": '{"path": "a", "label": "x"}\n{"path": "b", "label": null}\n'},
            "t.jsonl",
            {},
            "Row 2 of {folder}/t.jsonl ({folder}/b) has no label",
        ),
        (
            {"t.jsonl": '{"path": "a", "label": ["x", "y"]}\n'},
            "t.jsonl",
            {"task": "multiclass"},
            "2 in a list, where a multiclass task takes one label; use --task multilabel",
        ),
        (
            {"t.jsonl": '{"path": "a", "label": ["x", null]}\n'},
            "t.jsonl",
            {},
            "which has a missing value",
        ),
        (
            {"t.jsonl": '{"path": "a", "label": ["x"]}\n'},
            "t.jsonl",
            {"separator": ";"},
            "a list needs no --separator",
        ),
        (
            {"t.jsonl": '{"path": "a", "label": ["x|y"]}\n'},
            "t.jsonl",
            {},
            "in a list, none may contain '|'",
        ),
        (
            {"t.jsonl": '{"path": "a", "label": [["x"]]}\n'},
            "t.jsonl",
            {},
            "which has values that are lists or records themselves",
        ),
        (
            {"t.jsonl": '{"path": "a", "label": [0, 1, 1]}\n'},
            "t.jsonl",
            {},
            "make a column of each label (--label-columns)",
        ),
        (
            {"t.csv": "path,label\na,['x' 'y']\n"},
            "t.csv",
            {},
            "which is a list as NumPy prints it",
        ),
    ],
)
def test_data_that_cannot_be_are_one_sentence(
    tmp_path: Path,
    files: dict[str, str],
    location: str,
    options: dict[str, Any],
    sentence: str,
) -> None:
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        read_labelled(str(tmp_path / location), **options)
    assert sentence.format(folder=tmp_path) in str(caught.value)


def test_a_label_that_is_no_number_is_named_with_its_image() -> None:
    with pytest.raises(InputError, match=r"'warm', the label of b\.png, is not a number"):
        make_task("regression", ("1.5", "warm"), ("a.png", "b.png"))
    with pytest.raises(InputError, match=r"A row \(b.png\) has an empty label"):
        make_task("multiclass", ("x", ""), ("a.png", "b.png"))


def test_a_class_with_too_few_images_is_named() -> None:
    few = r"Class 'rare' of data has 2 images \(the first is /images/10.png\); at least 3"
    with pytest.raises(InputError, match=few):
        require_enough(labelled(common=10, rare=2), "multiclass", "data")
    require_enough(labelled(common=10, fine=3), "multiclass", "data")
    with pytest.raises(InputError, match="It may be 'Rare', written otherwise"):
        require_enough(labelled(Rare=10, rare=2), "multiclass", "data")
    with pytest.raises(InputError, match=r"\(/images/10.png\) has an empty label"):
        require_enough(labelled(common=10, **{"": 1}), "multiclass", "data")
    with pytest.raises(InputError, match="data has 2 images; at least 3"):
        require_enough(labelled(a=2), "regression", "data")
