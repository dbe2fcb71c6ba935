"""Labelled images from trees and tables: what is read, and what is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.datasets.labelled import (
    LabelledImages,
    join_images,
    read_labelled,
    require_enough,
)
from eagleray.errors import InputError, UserError
from eagleray.models.tasks import make_task

LABEL = st.text("abcé ", min_size=1, max_size=4).map(str.strip).filter(bool)


def labelled(**counts: int) -> LabelledImages:
    texts = tuple(label for label, count in counts.items() for _ in range(count))
    uris = tuple(f"/images/{index}.png" for index in range(len(texts)))
    return LabelledImages(uris, texts, ("1",) * len(texts))


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
    assert images.texts == ("cat", "cat", "dog")
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
    described = LabelledImages(before.uris, before.texts, before.versions, {"camera": ("a", "b")})
    assert described.digest == before.digest


# --- tables -----------------------------------------------------------------------------------


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
    assert images.texts == ("007", "8")
    assert images.attributes == {"camera": ("north", ""), "day": ("3", "4")}
    assert images.versions[0] == str((tmp_path / "a.png").stat().st_mtime_ns)
    assert images.versions[1] == ""  # not there, which is for whoever reads it to say


def test_types_of_parquet_become_text_and_bytes_are_left_out(tmp_path: Path) -> None:
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
    assert images.texts == ("x", "y", "x")
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
    assert images.texts == ("red|very round", "very round", "")
    assert set(images.attributes) == {"x"}


@given(st.lists(st.lists(LABEL, max_size=4), min_size=1, max_size=8))
def test_labels_between_any_separator_are_the_same_labels(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.jsonl"
    write_jsonl(path, [{"uri": "a", "label": " ; ".join(labels)} for labels in rows])
    texts = read_labelled(str(path), separator=";").texts
    assert texts == tuple("|".join(dict.fromkeys(labels)) for labels in rows)


def test_rows_of_two_tables_are_joined() -> None:
    one = LabelledImages(("a",), ("x",), ("1",), {"camera": ("north",)})
    other = LabelledImages(("b",), ("y",), ("2",), {"day": ("3",)})
    joined = join_images(one, other)
    assert joined.uris == ("a", "b")
    assert joined.attributes == {"camera": ("north", ""), "day": ("", "3")}


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "location", "options", "sentence"),
    [
        ({}, "nowhere", {}, "There is no folder"),
        ({}, "nowhere.csv", {}, "there is no such file"),
        ({"empty/.keep": ""}, "empty", {}, "holds no images in class folders"),
        ({"tree/loose.png": ""}, "tree", {}, "'loose.png' beside its class folders"),
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
    with pytest.raises(InputError, match="Class 'rare' of data has 2 images; at least 3"):
        require_enough(labelled(common=10, rare=2), "multiclass", "data")
    require_enough(labelled(common=10, fine=3), "multiclass", "data")
    with pytest.raises(InputError, match="data has 2 images; at least 3"):
        require_enough(labelled(a=2), "regression", "data")
