"""Whatever a user names as inputs, listed; and every row's bytes read back by the reader."""

from __future__ import annotations

import base64
import csv
import json
import os
import tarfile
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eagleray.core.errors import BadImageError, InputError, UserError
from eagleray.io import storage
from eagleray.io.fetch import ImageReader, ImageSource
from eagleray.io.storage import PathPolicy
from eagleray.sources import LISTING_SCHEMA, InputSpec, Listing, open_inputs, restrict_listing
from eagleray.sources.listing import ROWS_AT_ONCE
from tests.support.containers import hugging_face_images, write_parquet, write_tar, write_zip

NUM_OURS = len(LISTING_SCHEMA)
Row = dict[str, Any]


def write_files(folder: Path, *names: str) -> None:
    """Write files whose content is their name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def listed(*locations: str | Path, column: str | None = None) -> list[Row]:
    """List inputs; the user's own columns are under `user`."""
    listing = open_inputs(InputSpec(tuple(map(str, locations)), column))
    rows = []
    for table in listing.tables:
        assert table.schema == pa.schema([*LISTING_SCHEMA, *listing.user_schema])
        table.validate(full=True)
        ours = table.select(range(NUM_OURS)).to_pylist()
        user = table.select(range(NUM_OURS, table.num_columns)).to_pylist()
        rows += [row | {"user": own} for row, own in zip(ours, user, strict=True)]
    return rows


def listed_with(*locations: str | Path, column: str | None = None) -> tuple[list[Row], Listing]:
    """List inputs without columns of the user's; also returns the listing, read to its end."""
    listing = open_inputs(InputSpec(tuple(map(str, locations)), column))
    rows = [row for table in listing.tables for row in table.select(range(NUM_OURS)).to_pylist()]
    return rows, listing


def uris(rows: Sequence[Row]) -> list[str]:
    return [row["uri"] for row in rows]


def users(rows: Sequence[Row]) -> list[Row]:
    return [row["user"] for row in rows]


def read_all(rows: Sequence[Row]) -> list[bytes | str]:
    """Read every row's image; where that fails, its reason."""
    reader = ImageReader(2**20)

    def read(row: Row) -> bytes | str:
        names = ("uri", "size", "packing", "container", "offset")
        try:
            return reader.read(ImageSource(*(row[name] for name in names)))
        except BadImageError as error:
            return error.reason.value

    return [read(row) for row in rows]


# --- folders, patterns, files -----------------------------------------------------------------


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet, on this machine and behind a URI."""
    return f"{tmp_path}/in" if request.param == "local" else f"memory://{tmp_path}/in"


def put(folder: str, *names: str) -> None:
    for name in names:
        storage.put_atomic(storage.join(folder, name), name.encode())


ODD_NAMES = ["a b.png", "deep/er/ü%20#?.png", "new\nline.png", "no-extension", "x::y.png", "z.txt"]


def test_a_folder_lists_every_file_at_any_depth_in_name_order(place: str) -> None:
    put(place, *ODD_NAMES)
    rows = listed(place)
    assert uris(rows) == [storage.join(place, name) for name in ODD_NAMES]
    assert read_all(rows) == [name.encode() for name in ODD_NAMES]
    assert [row["size"] for row in rows] == [len(name.encode()) for name in ODD_NAMES]
    assert {row["packing"] for row in rows} == {None}


def test_names_that_are_skipped_are_counted_and_those_of_cameras_are_not_skipped(
    place: str,
) -> None:
    own = ["_DSC0001.JPG", "_MG_4711.jpg", "_sorted/a.jpg", "_thumbs/Thumbs.db.jpg", "a/1.png"]
    put(place, *(f".job/{name}" for name in own))
    put(place, ".job/.DS_Store", ".job/a/.b/c.png", ".job/...", ".job/..d.png")
    put(place, ".job/Thumbs.db", ".job/DESKTOP.INI", ".job/@eaDir/a.jpg")
    put(place, ".job/_SUCCESS", ".job/_eagleray/x.png", ".job/__MACOSX/y.png", ".job/_started_12")
    folder = storage.join(place, ".job")
    rows, listing = listed_with(folder)
    assert uris(rows) == [storage.join(folder, name) for name in own]
    assert listing.skipped.counts == {"hidden": 4, "system": 3, "marker": 4}
    assert listing.all_notes() == (
        "11 files were skipped: 4 hidden (such as ...), 3 of an operating system (such as @eaDir/"
        "a.jpg), 4 of a program that writes data (such as _SUCCESS).",
    )


def test_patterns_skip_the_same_names_unless_they_spell_them_out(place: str) -> None:
    put(place, "_DSC1.jpg", ".hidden.jpg", "a/.b/c.jpg", "_eagleray/page.jpg", "_eagleray/d/e.jpg")
    rows, listing = listed_with(f"{place}/**/*.jpg")
    assert read_all(rows) == [b"_DSC1.jpg"]
    assert listing.skipped.counts == {"hidden": 2, "marker": 2}
    assert read_all(listed(f"{place}/.h*.jpg")) == [b".hidden.jpg"]
    assert read_all(listed(f"{place}/_eagleray/*.jpg")) == [b"_eagleray/page.jpg"]
    assert read_all(listed(f"{place}/_eagleray/*/e.jpg")) == [b"_eagleray/d/e.jpg"]
    with pytest.raises(InputError, match=r"^No file matches .*page\.jpg\. 1 file was skipped"):
        listed(f"{place}/*/page.jpg")


def test_a_folder_of_nothing_but_skipped_names_says_so(place: str) -> None:
    put(place, ".hidden.jpg", "_SUCCESS")
    with pytest.raises(InputError) as caught:
        listed(place)
    assert str(caught.value) == (
        f"Folder {place} holds no files; name one that holds images. 2 files were skipped: 1 "
        "hidden (.hidden.jpg), 1 of a program that writes data (_SUCCESS)."
    )


def test_the_version_of_a_file_changes_with_it(tmp_path: Path) -> None:
    write_files(tmp_path, "1.png", "2.png")
    before = [row["version"] for row in listed(tmp_path)]
    os.utime(tmp_path / "1.png", ns=(1, 1))
    after = [row["version"] for row in listed(tmp_path)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True]


def test_a_pattern_matches_at_any_depth(place: str) -> None:
    put(place, "a/1.png", "a/b/2.png", "3.gif")
    rows = listed(f"{place}/**/*.png")
    assert read_all(rows) == [b"a/1.png", b"a/b/2.png"]
    assert [row["size"] for row in rows] == [7, 9]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    write_files(tmp_path, "[1].png", "1.png")
    assert uris(listed(tmp_path / "[1].png")) == [f"{tmp_path}/[1].png"]


def test_locations_keep_their_order_and_repeat(tmp_path: Path) -> None:
    write_files(tmp_path, "1.png", "2.png")
    rows = listed(tmp_path / "2.png", tmp_path, tmp_path / "2.png", tmp_path / "2.png")
    assert read_all(rows) == [b"2.png", b"1.png", b"2.png", b"2.png", b"2.png"]


def test_a_relative_location_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, "sub/1.png")
    write_tar(tmp_path / "sub" / "2.tar", {"a.png": b"a"})
    monkeypatch.chdir(tmp_path)
    expected = [f"{tmp_path}/sub/1.png", f"tar://a.png::{tmp_path}/sub/2.tar"]
    assert uris(listed("sub")) == uris(listed("sub/1.png", "sub/2.tar")) == expected


def test_a_link_that_leads_nowhere_stays(tmp_path: Path) -> None:
    write_files(tmp_path, "1.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    assert read_all(listed(tmp_path)) == [b"1.png", "missing"]


def test_names_that_are_not_utf8_are_spelled_out_and_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9"))
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"latin")
    (folder / os.fsdecode("café.png".encode())).write_bytes(b"utf-8")
    (folder / "caf\\xe8.png").write_bytes(b"a backslash")
    write_tar(folder / "a.tar", {os.fsdecode(b"caf\xe9.png"): b"packed"})
    text = f"{tmp_path}/d\\xe9"
    rows = listed(str(folder))
    assert uris(rows) == [
        f"tar://caf\\xe9.png::{text}/a.tar",
        *(f"{text}/{name}" for name in ("caf\\xe8.png", "café.png", "caf\\xe9.png")),
    ]
    assert read_all(rows) == [b"packed", b"a backslash", b"utf-8", b"latin"]
    assert rows == listed(text)
    names = [os.fsdecode(b"caf\xe9.png"), "caf\\xe9.png", "a.tar"]
    (folder / "t.jsonl").write_text("".join(json.dumps({"uri": name}) + "\n" for name in names[:2]))
    assert read_all(listed(folder / "t.jsonl")) == [b"latin", b"latin"]
    assert read_all(listed(*(folder / name for name in names))) == [b"latin", b"latin", b"packed"]
    assert read_all(listed(str(folder / os.fsdecode(b"caf\xe9*")))) == [b"latin"]


def test_inputs_on_s3(s3: str, tmp_path: Path) -> None:
    place = f"{s3}/inputs of every kind"
    write_tar(tmp_path / "a.tar", {"1::%.png": b"1"})
    write_zip(tmp_path / "b.zip", {"2 2.png": b"22"})
    write_parquet(tmp_path / "c.parquet", {"image": [b"333"], "label": ["three"]})
    for name in ("a.tar", "b.zip", "c.parquet"):
        storage.put_atomic(storage.join(place, name), (tmp_path / name).read_bytes())
    dots = ["d e/4 4%20.png", "e/../6.png", "e/./7.png"]
    put(place, *dots, ".hidden/5.png")
    rows = listed(place)
    assert read_all(rows) == [b"1", b"22", b"333", *(name.encode() for name in dots)]
    assert listed_with(place)[1].skipped.counts == {"hidden": 1}
    assert all(row["version"] for row in rows)
    named = listed(*(storage.join(place, name) for name in ("a.tar", "b.zip", "c.parquet")))
    assert named == [row | {"user": own["user"]} for row, own in zip(rows[:3], named, strict=True)]
    assert users(rows) == [{"label": label} for label in (None, None, "three", *[None] * 3)]
    table = write_table(tmp_path / "failed.jsonl", {"uri": uris(rows)})
    storage.put_atomic(f"{place}/lists/failed.jsonl", Path(table).read_bytes())
    assert read_all(listed(f"{place}/lists/failed.jsonl")) == read_all(rows)
    with pytest.raises(InputError, match="There is no folder or file s3://pictures/none"):
        listed("s3://pictures/none.png")


def test_an_address_is_an_image_that_is_not_fetched_yet() -> None:
    rows = listed("https://example.org/a.png?size=*")
    assert uris(rows) == ["https://example.org/a.png?size=*"]
    assert read_all(rows) == ["unreadable"]


# --- archives ---------------------------------------------------------------------------------

SAMPLES = {
    "7.jpg": b"seven",
    "7.json": b"{}",
    "7.cls": b"1",
    "deep/8.a.txt": b"about eight",
    "deep/8.b.PNG": b"eight",
    "deep/8.c.png": b"another view",
    "8.txt": b"of no image",
    "7": b"without extension",
    "README.md": b"read me",
}
INPUTS_OF_SAMPLES = ["7.jpg", "deep/8.b.PNG", "deep/8.c.png", "8.txt", "7", "README.md"]


@pytest.mark.parametrize("packing", ["tar", "zip"])
def test_members_are_inputs_but_for_what_describes_an_image(tmp_path: Path, packing: str) -> None:
    write = write_tar if packing == "tar" else write_zip
    location = write(tmp_path / f"a.{packing}", SAMPLES)
    rows = listed(location)
    assert uris(rows) == [f"{packing}://{name}::{location}" for name in INPUTS_OF_SAMPLES]
    assert read_all(rows) == [SAMPLES[name] for name in INPUTS_OF_SAMPLES]
    assert [row["size"] for row in rows] == [len(SAMPLES[name]) for name in INPUTS_OF_SAMPLES]
    assert {row["container"] for row in rows} == {location}
    assert {row["packing"] for row in rows} == {packing}
    assert listed_with(location)[1].all_notes() == (
        "3 files were skipped: 3 that only describe an image in their archive (such as 7.cls).",
    )


def test_raw_files_of_cameras_do_not_describe_the_image_beside_them(tmp_path: Path) -> None:
    members = {"1.jpg": b"jpeg", "1.CR2": b"raw", "1.nef": b"raw", "1.xmp": b"about it"}
    assert read_all(listed(write_tar(tmp_path / "a.tar", members))) == [b"jpeg", b"raw", b"raw"]


@pytest.mark.parametrize("packing", ["tar", "zip"])
def test_hidden_members_and_folders_are_no_inputs(tmp_path: Path, packing: str) -> None:
    names = ["./1.png", "../2.png", ".DS_Store", "__MACOSX/._1.png", "a/_b/c.png", "d/.e/f.png"]
    names += ["/abs.png", "Thumbs.db"]
    write = write_tar if packing == "tar" else write_zip
    location = write(tmp_path / f"a.{packing}", {name: name.encode() for name in names})
    if packing == "zip":
        with zipfile.ZipFile(location, "a") as archive:
            archive.writestr("folder/", "")
    rows, listing = listed_with(location)
    assert read_all(rows) == [b"./1.png", b"../2.png", b"a/_b/c.png", b"/abs.png"]
    assert listing.skipped.counts == {"hidden": 2, "system": 1, "marker": 1}


def test_the_version_of_a_member_is_that_of_the_archive_and_its_place(tmp_path: Path) -> None:
    location = write_tar(tmp_path / "a.tar", {"1.png": b"1", "2.png": b"2"})
    os.utime(location, ns=(5, 5))
    assert [row["version"] for row in listed(location)] == ["5:512", "5:1536"]


def test_a_name_that_is_there_twice_is_two_inputs(tmp_path: Path) -> None:
    location = write_tar(tmp_path / "a.tar", [("1.png", b"old"), ("1.png", b"new")])
    assert read_all(listed(location)) == [b"old", b"new"]


def test_folders_of_shards_are_opened_in_place(tmp_path: Path) -> None:
    write_files(tmp_path, "a.png", "c/5.png", "z.png")
    write_tar(tmp_path / "b.tar", {"1.jpg": b"1", "1.cls": b"x", "2.jpg": b"2"})
    write_tar(tmp_path / "c" / "3.TAR", {"3.jpg": b"3"})
    write_tar(tmp_path / "c" / "3b.tar", {})
    write_zip(tmp_path / "c" / "4.zip", {"4.jpg": b"4"})
    write_tar(tmp_path / ".hidden" / "9.tar", {"9.jpg": b"9"})
    write_tar(tmp_path / "_9" / "9.tar", {"9.jpg": b"9"})
    write_parquet(tmp_path / "d.parquet", {"image": [b"6", b"7"], "label": ["six", "seven"]})
    write_parquet(tmp_path / "e.parquet", {"path": ["x.png"], "label": ["stray"]})
    rows = listed(tmp_path)
    stray = (tmp_path / "e.parquet").read_bytes()
    expected = [b"9", b"a.png", b"1", b"2", b"3", b"4", b"c/5.png", b"6", b"7", stray, b"z.png"]
    assert read_all(rows) == expected
    labels = [None] * 7 + ["six", "seven", None, None]
    assert users(rows) == [{"label": label} for label in labels]
    pattern = listed(f"{tmp_path}/**/*.[tz][ai][rp]")
    assert read_all(pattern) == [b"9", b"1", b"2", b"4"]


def test_many_shards_come_in_order(tmp_path: Path) -> None:
    for number in range(60):
        write_tar(tmp_path / f"{number:02}.tar", {f"{number}.jpg": b"%d" % number})
    assert read_all(listed(tmp_path)) == [b"%d" % number for number in range(60)]


def test_leaving_a_listing_early_leaves_no_threads(tmp_path: Path) -> None:
    for number in range(60):
        write_tar(tmp_path / f"{number:02}.tar", {f"{number}.jpg": b"x"})
    before = threading.active_count()
    tables = open_inputs(InputSpec((str(tmp_path),))).tables
    next(tables)
    tables.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


# --- Parquet with images ----------------------------------------------------------------------


def test_a_parquet_of_images_brings_its_other_columns(tmp_path: Path) -> None:
    location = write_parquet(
        tmp_path / "a.parquet",
        {
            "id": pa.array([7, None, 9], pa.int16()),
            "image": hugging_face_images([b"one", None, b"three"]),
            "mask": [b"m", b"m", b"m"],
            "box": [[1, 2], [], None],
            "split": pa.array(["x", "y", "x"]).dictionary_encode(),
        },
        row_group_size=2,
    )
    rows = listed(location)
    assert uris(rows) == [f"parquet://image/{row}::{location}" for row in range(3)]
    assert read_all(rows) == [b"one", "missing", b"three"]
    assert [row["size"] for row in rows] == [None] * 3
    assert users(rows) == [
        {"id": 7, "box": [1, 2], "split": "x"},
        {"id": None, "box": [], "split": "y"},
        {"id": 9, "box": None, "split": "x"},
    ]
    schema = open_inputs(InputSpec((location,))).user_schema
    assert schema.field("id").type == pa.int16()
    assert schema.field("split").type == pa.string()


def test_the_column_of_images_can_be_named(tmp_path: Path) -> None:
    location = write_parquet(
        tmp_path / "a.parquet", {"small": [b"s"], "large": [b"l"], "uri": ["/x.png"]}
    )
    assert read_all(listed(location, column="small")) == [b"s"]
    assert read_all(listed(location, column="large")) == [b"l"]
    rows = listed(location, column="uri")
    assert uris(rows) == ["/x.png"]
    assert users(rows) == [{}]


@pytest.mark.parametrize(
    ("columns", "expected", "note"),
    [
        (
            {"mask": [b"m"], "image": [b"i"]},
            b"i",
            "the images are those in column 'image', and not in 'mask'",
        ),
        (
            {"uri": ["here.png"], "thumbnail": [b"t"]},
            b"here.png",
            "the locations of the images are those in column 'uri', and not in 'thumbnail'",
        ),
        (
            {"hash": [b"h"], "geometry": [b"g"], " Path ": ["here.png"]},
            b"here.png",
            "the locations of the images are those in column ' Path ', and not in 'hash', "
            "'geometry'",
        ),
        (
            {"uri": ["else.png"], "Image": [b"i"], "path": ["x"]},
            b"i",
            "the images are those in column 'Image', and not in 'uri', 'path'",
        ),
        (
            {"url": ["else.png"], "path": ["here.png"]},
            b"here.png",
            "the locations of the images are those in column 'path', and not in 'url'",
        ),
        ({"scan": [b"s"], "label": ["x"]}, b"s", None),
        ({"path": ["here.png"], "label": ["x"]}, b"here.png", None),
    ],
)
def test_a_choice_among_columns_is_reported(
    tmp_path: Path, columns: dict[str, Any], expected: bytes, note: str | None
) -> None:
    write_files(tmp_path, "here.png")
    location = write_parquet(tmp_path / "t.parquet", columns)
    rows, listing = listed_with(location)
    assert read_all(rows) == [expected]
    sentence = f"{location}: {note}; --column names another."
    assert listing.all_notes() == (() if note is None else (sentence,))


def test_a_choice_that_many_tables_share_is_reported_once(tmp_path: Path) -> None:
    for number in range(3):
        write_parquet(tmp_path / f"{number}.parquet", {"mask": [b"m"], "image": [b"i"]})
    (remark,) = open_inputs(InputSpec((str(tmp_path),))).all_notes()
    assert remark.startswith(f"{tmp_path}/0.parquet and 2 more: the images are those in column")


def test_one_of_several_columns_of_bytes_must_be_named(tmp_path: Path) -> None:
    location = write_parquet(tmp_path / "t.parquet", {"left": [b"l"], "right": [b"r"], "n": [1]})
    for place in (location, str(tmp_path)):
        with pytest.raises(InputError, match="has several columns of bytes: left, right; name the"):
            listed(place)
    assert read_all(listed(location, column="right")) == [b"r"]


@pytest.mark.parametrize("statistics", [True, False])
def test_images_that_a_hugging_face_column_only_names_are_read(
    tmp_path: Path, statistics: bool
) -> None:
    write_files(tmp_path, "a.png", "b.png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [
        *({"bytes": None, "path": "a.png"}, {"bytes": b"bytes", "path": "a.png"}, None),
        *({"bytes": None, "path": None}, {"bytes": None, "path": f"{tmp_path}/b.png"}),
        {"bytes": None, "path": "none.png"},
    ]
    columns = {"n": range(6), "image": pa.array(cells, kind)}
    location = write_parquet(
        tmp_path / "t.parquet", columns, row_group_size=2, write_statistics=statistics
    )
    rows = listed(location)
    expected = [b"a.png", b"bytes", "missing", "missing", b"b.png", "missing"]
    assert read_all(rows) == expected
    assert [row["user"] for row in rows] == [{"n": number} for number in range(6)]
    assert uris(rows)[0] == f"{tmp_path}/a.png"
    assert [row["size"] for row in rows] == [5, None, None, None, 5, None]
    untyped = write_parquet(tmp_path / "u.parquet", {"image": [{"bytes": None, "path": "a.png"}]})
    assert read_all(listed(untyped)) == [b"a.png"]


def test_a_path_in_a_cell_is_bounded_like_any_other_location(tmp_path: Path) -> None:
    cells = [{"bytes": None, "path": "/etc/hostname"}]
    location = write_parquet(tmp_path / "t.parquet", {"image": cells})
    listing = restrict_listing(open_inputs(InputSpec((location,))), PathPolicy((str(tmp_path),)))
    with pytest.raises(InputError, match="Input 0 is /etc/hostname, which is outside the loc"):
        list(listing.tables)


JPEG_START = b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(range(90))


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (base64.b64encode(JPEG_START).decode(), "base64 text"),
        (base64.urlsafe_b64encode(b"\x89PNG\r\n\x1a\n" + bytes(90)).decode(), "base64 text"),
        (base64.encodebytes(b"GIF89a" + bytes(90)).decode(), "base64 text"),
        ("data:image/png;base64,iVBORw0KGgo=", "a data: URL"),
    ],
)
def test_images_inside_of_a_text_are_named_as_such(tmp_path: Path, cell: str, words: str) -> None:
    location = write_table(tmp_path / "t.jsonl", {"image": ["", cell], "n": [1, 2]})
    with pytest.raises(InputError) as caught:
        listed(location)
    assert str(caught.value).startswith(
        f"Column 'image' of {location} holds images as {words} and not their locations, which is"
    )
    late = listed(write_table(tmp_path / "late.jsonl", {"image": ["a.png", cell]}))[1]
    with pytest.raises(BadImageError) as failed:
        ImageReader(2**20).read(ImageSource(late["uri"], late["size"]))
    assert failed.value.message == f"the table contains {words} instead of a location"


def test_a_long_name_of_letters_is_no_image(tmp_path: Path) -> None:
    names = ["x" * 200, "a/" * 100 + "b", "x" * 5000]
    assert read_all(listed(write_table(tmp_path / "t.csv", {"path": names}))) == ["missing"] * 3


def test_a_parquet_of_nothing_but_images_is_listed_without_reading_them(tmp_path: Path) -> None:
    location = write_parquet(tmp_path / "a.parquet", {"image": [b"x" * 1000] * 20_000})
    before = pa.total_allocated_bytes()
    listing = open_inputs(InputSpec((location,)))
    sizes = []
    for table in listing.tables:
        sizes.append(table.num_rows)
        assert pa.total_allocated_bytes() - before < 10 * 2**20
    assert sizes == [8192, 8192, 3616]


def test_a_folder_of_parquet_files_is_one_data_set(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x" / "0.parquet", {"image": [b"0"], "id": pa.array([1], pa.int8())})
    write_parquet(tmp_path / "x" / "1.pq", {"image": [b"1"], "label": ["one"]})
    write_parquet(
        tmp_path / "x" / "2.parquet", {"image": pa.array([], pa.binary()), "id": pa.array([], "i4")}
    )
    write_files(tmp_path / "x", "_SUCCESS", ".crc/x")
    rows = listed(tmp_path / "x")
    assert read_all(rows) == [b"0", b"1"]
    assert users(rows) == [{"id": 1, "label": None}, {"id": None, "label": "one"}]
    assert open_inputs(InputSpec((str(tmp_path / "x"),))).user_schema.field("id").type == "int32"


def test_a_read_me_beside_parquet_files_takes_nothing_from_them(tmp_path: Path) -> None:
    write_files(tmp_path, "README.md")
    write_parquet(tmp_path / "data" / "0.parquet", {"image": [b"0"], "label": ["zero"]})
    write_parquet(tmp_path / "data" / "1.parquet", {"image": [b"1"], "split": ["test"]})
    rows = listed(tmp_path)
    assert read_all(rows) == [b"README.md", b"0", b"1"]
    assert users(rows)[1:] == [{"label": "zero", "split": None}, {"label": None, "split": "test"}]


# --- tables of locations ----------------------------------------------------------------------


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> str:
    """Write a table in the format that its name says."""
    if path.suffix == ".parquet":
        return write_parquet(path, columns)
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return str(path)
    records = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl", "list.ndjson", "list.parquet"])
def test_locations_in_a_table_are_beside_it(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, "a, b.png", "new\nline.png")
    location = write_table(
        tmp_path / name,
        {
            "who": ["x", "y", "z", "y"],
            "photo": ["a, b.png", "new\nline.png", "s3://bucket/c d.png", "new\nline.png"],
            "uri": ["u"] * 4,
        },
    )
    rows = listed(location, column="photo")
    assert uris(rows) == [
        f"{tmp_path}/a, b.png",
        f"{tmp_path}/new\nline.png",
        "s3://bucket/c d.png",
        f"{tmp_path}/new\nline.png",
    ]
    assert [row["size"] for row in rows] == [8, 12, None, 12]
    assert [bool(row["version"]) for row in rows] == [True, True, False, True]
    assert users(rows) == [{"who": who, "uri": "u"} for who in ("x", "y", "z", "y")]


def test_the_user_may_have_columns_of_our_names(tmp_path: Path) -> None:
    location = write_table(tmp_path / "a.csv", {"path": ["x"], "size": ["XL"], "offset": ["far"]})
    assert listed(location)[0]["size"] is None
    assert users(listed(location)) == [{"size": "XL", "offset": "far"}]


@pytest.mark.parametrize("name", ["list.jsonl", "list.parquet", "list.csv"])
def test_empty_locations_stay_as_rows(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, "a.png")
    values = ["", "a.png", "" if name.endswith("csv") else None]
    rows = listed(write_table(tmp_path / name, {"uri": values, "n": ["1", "2", "3"]}))
    assert uris(rows) == ["", f"{tmp_path}/a.png", ""]
    assert read_all(rows) == ["missing", b"a.png", "missing"]
    assert users(rows) == [{"n": "1"}, {"n": "2"}, {"n": "3"}]


def test_csv_columns_stay_text_and_json_columns_have_types(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,id\n1.png,007\n2.png,1e3\n")
    assert users(listed(tmp_path / "a.csv")) == [{"id": "007"}, {"id": "1e3"}]
    (tmp_path / "a.jsonl").write_text('{"path": "1.png", "id": 7, "box": [1, 2]}\n')
    assert users(listed(tmp_path / "a.jsonl")) == [{"id": 7, "box": "[1, 2]"}]


def test_tables_with_different_columns_become_one(tmp_path: Path) -> None:
    write_files(tmp_path, "plain.png")
    first = write_table(tmp_path / "1.csv", {"path": ["a", "b"], "label": ["x", "y"]})
    second = write_table(tmp_path / "2.csv", {"split": ["test"], "path": ["c"], "label": ["z"]})
    third = write_table(tmp_path / "3.jsonl", {"uri": ["d"], "label": [True], "n": [1]})
    fourth = write_table(tmp_path / "4.jsonl", {"uri": ["e", "f"], "n": [2.5, None]})
    rows = listed(first, second, third, fourth, tmp_path / "plain.png")
    assert [tuple(row.values()) for row in users(rows)] == [
        ("x", None, None),
        ("y", None, None),
        ("z", "test", None),
        ("true", None, "1"),
        (None, None, "2.5"),
        (None, None, None),
        (None, None, None),
    ]
    assert [list(row) for row in users(rows)] == [["label", "split", "n"]] * 7


def test_columns_that_cannot_be_one_are_one_sentence(tmp_path: Path) -> None:
    first = write_table(tmp_path / "1.csv", {"path": ["a"], "box": ["x"]})
    second = write_parquet(tmp_path / "2.parquet", {"path": ["b"], "box": [[1, 2]]})
    with pytest.raises(InputError) as caught:
        open_inputs(InputSpec((first, second)))
    assert str(caught.value) == (
        f"Column 'box' holds string in {first} and list<element: int64> in {second}; rename one "
        "of them, or run two jobs."
    )


@pytest.mark.parametrize("extension", ["csv", "jsonl"])
def test_a_folder_or_pattern_of_tables_only_is_read_as_tables(
    tmp_path: Path, extension: str
) -> None:
    write_files(tmp_path / "in", "1.png", "2.png")
    (tmp_path / "out").mkdir()
    for number in (1, 2):
        write_table(
            tmp_path / "out" / f"part-{number}.{extension}",
            {"uri": [f"{tmp_path}/in/{number}.png"], "status": ["failed"]},
        )
    write_files(tmp_path / "out", "_SUCCESS")
    for location in (tmp_path / "out", f"{tmp_path}/out/*.{extension}"):
        rows = listed(location)
        assert read_all(rows) == [b"1.png", b"2.png"]
        assert users(rows) == [{"status": "failed"}] * 2


@pytest.mark.parametrize(
    "names",
    [("part-0.json", "part-1.json"), ("list.csv", "README.md"), ("a.txt",), ("a.tfrecord",)],
)
def test_a_folder_or_pattern_of_lists_that_are_not_read_is_refused(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    write_files(tmp_path, *names, ".hidden.jpg")
    for location in (tmp_path, f"{tmp_path}/*"):
        with pytest.raises(InputError) as caught:
            listed(location)
        assert str(caught.value) == (
            f"{location} holds no images, but tables and other files such as {min(names)}; "
            "name the table of images on its own."
        )


def test_a_table_among_pictures_is_a_file_like_any_other(tmp_path: Path) -> None:
    write_files(tmp_path, "1.png", "labels.csv")
    assert read_all(listed(tmp_path)) == [b"1.png", b"labels.csv"]


# --- packed images in tables ------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path) -> list[Row]:
    """Rows of images in containers of every kind, as a job would list them."""
    write_tar(tmp_path / "in" / "a.tar", {"1.png": b"one", "2.png": b"two"})
    write_zip(tmp_path / "in" / "b::c.zip", {"3.png": b"three"})
    write_parquet(tmp_path / "in" / "d.parquet", {"my/image": [b"four", None]})
    return listed(tmp_path / "in")


@pytest.mark.parametrize("name", ["failed.csv", "failed.jsonl", "failed.parquet"])
def test_a_table_of_failures_is_an_input_again(
    tmp_path: Path, packed: list[Row], name: str
) -> None:
    again = packed[::-1] + packed[:2]
    location = write_table(tmp_path / name, {"uri": uris(again), "status": ["failed"] * 7})
    rows = listed(location)
    assert [row | {"user": {}} for row in rows] == again
    assert read_all(rows) == ["missing", b"four", b"three", b"two", b"one", b"one", b"two"]


def test_packed_images_that_are_not_there_stay_as_rows(tmp_path: Path, packed: list[Row]) -> None:
    names = ["tar://9.png::in/a.tar", "tar://1.png::in/none.tar", "parquet://my/image/9::in/d.pq"]
    names += ["zip://3.png::in/b::c.zip", "tar://2.png::in/a.tar", "tar://2.png::/none/a::b.tar"]
    rows = listed(write_table(tmp_path / "list.csv", {"path": names}))
    assert uris(rows) == [
        f"tar://9.png::{tmp_path}/in/a.tar",
        f"tar://1.png::{tmp_path}/in/none.tar",
        f"parquet://my/image/9::{tmp_path}/in/d.pq",
        f"zip://3.png::{tmp_path}/in/b::c.zip",
        f"tar://2.png::{tmp_path}/in/a.tar",
        "tar://2.png::/none/a::b.tar",
    ]
    assert read_all(rows) == ["missing", "missing", "missing", b"three", b"two", "missing"]
    assert [row["packing"] for row in rows] == [None, None, None, "zip", "tar", None]
    assert [row["size"] for row in rows] == [None, None, None, 5, 3, None]


def test_a_damaged_archive_in_a_table_spoils_its_own_rows_only(tmp_path: Path) -> None:
    write_files(tmp_path, "bad.tar", "good.png")
    location = write_table(tmp_path / "a.csv", {"uri": ["tar://1.png::bad.tar", "good.png"]})
    assert read_all(listed(location)) == ["unreadable", b"good.png"]


def test_a_packed_image_can_be_named_alone(packed: list[Row]) -> None:
    assert [row | {"user": {}} for row in listed(*uris(packed))] == packed


def test_each_container_of_a_table_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", {f"{index}.png": b"x" for index in range(50)})
    names = [f"tar://{index}.png::{number}.tar" for index in range(50) for number in range(3)]
    location = write_table(tmp_path / "list.csv", {"uri": names})
    opened: list[str] = []
    open_tar = tarfile.open

    def count(*args: Any, **options: Any) -> Any:
        opened.append(options["fileobj"].name)
        return open_tar(*args, **options)

    monkeypatch.setattr("tarfile.open", count)
    assert len(listed(location)) == 150
    assert sorted(opened) == [f"{tmp_path}/{number}.tar" for number in range(3)]


# --- names ------------------------------------------------------------------------------------

NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
        lambda name: (
            not name.endswith("/") and not any(map(storage.is_skipped_name, name.split("/")))
        )
    ),
    min_size=1,
    max_size=6,
    unique=True,
)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@example(names=["a::b.png", "::", "a:", ":", "x::/etc/y.png", "tar://a::/b.tar", "s3://b/c"])
@example(names=["%2F%20.png", "new\nline\r\n.png", "\r", " lead", "trail ", '"', ",", "'", "\t"])
@example(names=["é.png", "e\u0301.png", "\ufeff.png", "\u2028", "\U0001f408.png", "\ufffd"])
@given(names=NAMES)
def test_names_survive_archives_and_tables_of_every_kind(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    contents = {name: f"content of {name}".encode() for name in names}
    for write, extension in ((write_tar, "tar"), (write_zip, "zip")):
        location = write(folder / f"a.{extension}", contents)
        rows = listed(location)
        assert uris(rows) == [f"{extension}://{name}::{location}" for name in names]
        assert read_all(rows) == list(contents.values())
        for table in ("t.csv", "t.jsonl", "t.parquet"):
            again = listed(write_table(folder / table, {"uri": uris(rows)}))
            assert uris(again) == uris(rows)
            assert read_all(again) == list(contents.values())


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(
    column=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9
    )
)
@example(column="a/b::c")
@example(column="a.b")
@example(column="::/1")
def test_names_of_columns_survive(tmp_path_factory: pytest.TempPathFactory, column: str) -> None:
    folder = tmp_path_factory.mktemp("columns")
    location = write_parquet(folder / "a.parquet", {column: [b"0", b"1"], "x" + column: [1, 2]})
    rows = listed(location)
    assert read_all(rows) == [b"0", b"1"]
    assert users(rows) == [{"x" + column: 1}, {"x" + column: 2}]
    again = listed(write_table(folder / "t.csv", {"uri": uris(rows)}))
    assert read_all(again) == [b"0", b"1"]


def test_odd_names_of_files_survive_tables(tmp_path: Path) -> None:
    write_files(tmp_path / "in", *ODD_NAMES)
    found = uris(listed(tmp_path / "in"))
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        rows = listed(write_table(tmp_path / name, {"uri": found}))
        assert read_all(rows) == [name.encode() for name in ODD_NAMES]


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "column", "sentence"),
    [
        ("nowhere", None, None, "There is no folder or file {path}; check the path."),
        ("none.tar", None, None, "There is no folder or file {path}; check the path."),
        ("none.csv", None, None, "Cannot read {path}: there is no such file."),
        ("none.parquet", None, None, "Cannot read {path}: there is no such file."),
        ("empty", "folder", None, "Folder {path} holds no files; name one that holds images."),
        ("*.tif", None, None, "No file matches the pattern {path}."),
        ("*.csv", None, None, "No file matches the pattern {path}."),
        ("a.csv", "path\n", None, "{path} has a header and no rows."),
        ("a.jsonl", "\n", None, "{path} has no rows."),
        ("list.txt", "a.png\nb.png\n", None, "{path} is a text, and no table that is read; for a"),
        ("a.LST", "a.png 0\n", None, "{path} is a text, and no table that is read; for a list of"),
        ("a.json", "[]", None, "{path} is JSON, which is not read as a whole; write one object"),
        ("a.manifest", "{}", None, "{path} is JSON, which is not read as a whole; write one"),
        ("a.xlsx", "PK\3\4", None, "{path} is a spreadsheet, which is not read; save its table"),
        ("a.feather", "ARROW1", None, "{path} is a table or an array of a kind that is not read"),
        ("a.tfrecord", "x", None, "{path} packs records in a way that is not read; write the"),
        ("a.jpg.gz", "x", None, "{path} is compressed as a whole, and not read so; decompress it."),
        (
            "a.csv.bz2",
            "x",
            None,
            "{path} is compressed as a whole, and not read so; decompress it.",
        ),
        ("a.csv.zip", "x", None, "{path} is a table in a zip archive, and not read so; unpack it."),
        ("list", "a.png\nb.png\n", None, "{path} is a text, and neither an image nor a table"),
        ("a.shards", "PAR1", None, "{path} is a Parquet file under another name; give it the"),
        ("a.cbz", "PK\3\4", None, "{path} is a zip archive under another name; give it the"),
        ("a.7z", "x", None, "a.7z is compressed as a whole, so that no image in it can be reached"),
        ("noheader.csv", "a.png\nb.png\n", "a.png", "{path} seems to have no header: its first"),
        ("https://a.org/x.TXT?y", None, None, "https://a.org/x.TXT?y is not read from the net"),
        ("a.jsonl", '{"path": "a"}\n{"path"}\n', None, "Line 2 of {path} is not JSON (Expecting"),
        ("a.jsonl", '{"path": "a"}\n\n["a"]\n', None, "Line 3 of {path} is not JSON (it is no"),
        ("a.jsonl", '{"path": 7}\n', None, "Column 'path' of {path} holds int64, neither loc"),
        ("a.csv", "a,b\n1,2\n", None, "{path} has no column named uri or path or file or"),
        ("a.csv", "path\n1\n", "paht", "No column of {path} is named 'paht'. Nearest: path."),
        ("a.csv", "path,path\n1,2\n", None, "{path} has more than one column named 'path'"),
        ("a.parquet", "PAR1", None, "{path} is not a whole Parquet file ("),
        ("a.tar.gz", "x", None, "a.tar.gz is compressed as a whole, so that no image in it can"),
        ("A.TGZ", "x", None, "A.TGZ is compressed as a whole, so that no image in it can"),
        ("https://a.org/x.csv", None, None, "https://a.org/x.csv is not read from the net"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_listed(
    tmp_path: Path, name: str, content: str | None, column: str | None, sentence: str
) -> None:
    path = name if "://" in name else str(tmp_path / name)
    if content == "folder":
        Path(path).mkdir()
    elif content is not None:
        Path(path).write_text(content)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        open_inputs(InputSpec((path,), column))
    assert str(caught.value).startswith(sentence.format(path=path))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.tar", b"", "{path} is not a whole tar archive (empty file); copy it again, or"),
        ("a.zip", b"\0no zip", "{path} is not a whole zip archive (File is not a zip file); copy"),
        ("a.zip", b"Not found\n", "{path} is a text in spite of its name, so that no image in it"),
        ("in/a.tar", b"\x1f\x8b" * 600, "{path} is compressed with gzip in spite of its name, so"),
        ("in/a.tar", b"\xff" * 600, "{path} is not a whole tar archive ("),
        ("in/a.7z", b"x", "a.7z is compressed as a whole"),
        ("in/a.tgz", b"x", "a.tgz is compressed as a whole"),
        ("in/a.parquet", b"\0", "{path} is not a whole Parquet file ("),
        (
            "a.csv",
            b"path,n\n" + (b"x," + b"1" * 1000 + b"\n") * 20_000 + b"x\n",
            "{path} cannot be read as a CSV",
        ),
    ],
)
def test_mistakes_that_listing_shows_are_one_sentence_too(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    write_files(tmp_path, "in/0.png")
    (tmp_path / name).write_bytes(content)
    location = tmp_path / name.partition("/")[0]
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        listed(location)
    assert str(caught.value).startswith(sentence.format(path=tmp_path / name))


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_archives_without_images_hold_nothing(tmp_path: Path, name: str) -> None:
    write = write_tar if name == "a.tar" else write_zip
    location = write(tmp_path / name, {".hidden": b"x"})
    skipped = r"1 file was skipped: 1 hidden \(\.hidden\)\.$"
    with pytest.raises(InputError, match=rf"^Archive {location} holds no images\. {skipped}"):
        listed(location)
    with pytest.raises(InputError, match=rf"^{tmp_path} holds no images\. {skipped}"):
        listed(tmp_path)


def test_columns_that_come_too_late_are_not_lost_without_a_word(tmp_path: Path) -> None:
    for number in range(8_200):
        (tmp_path / f"{number}.png").symlink_to("x")
    write_parquet(tmp_path / "z.parquet", {"image": [b"x"], "label": ["x"]})
    with pytest.raises(InputError, match="has a column 'label' of string that the tables before"):
        listed(tmp_path)


def test_a_bucket_that_does_not_respond_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"^nonsense://bucket/a is not opened: [^\n]+$"):
        open_inputs(InputSpec(("nonsense://bucket/a",)))


# --- size -------------------------------------------------------------------------------------


def test_a_long_table_streams(tmp_path: Path) -> None:
    write_files(tmp_path, "a.png")
    location = tmp_path / "list.csv"
    with location.open("w") as file:
        file.write("path,label,note\n")
        file.writelines(f"a.png,{number},{'x' * 100}\n" for number in range(100_000))
    started, before = time.perf_counter(), pa.total_allocated_bytes()
    sizes = []
    for table in open_inputs(InputSpec((str(location),))).tables:
        sizes.append(table.num_rows)
        assert table.column("size").null_count == 0
        assert pa.total_allocated_bytes() - before < 150 * 2**20
    assert sum(sizes) == 100_000
    assert max(sizes) <= ROWS_AT_ONCE
    assert time.perf_counter() - started < 60
