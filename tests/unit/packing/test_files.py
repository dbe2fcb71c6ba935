"""The files of a packing job: bytes in are bytes out, the same every time."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagleray.sources import InputSpec, open_inputs
from tests.support.images import encode, photo
from tests.support.packing import (
    FORMATS,
    JPEG,
    MIB,
    PNG,
    files_of,
    manifest_of,
    numbered,
    pack,
    read_back,
    sources,
    write_files,
)

ODD: dict[str, bytes] = {
    "a b.jpg": JPEG,
    "ü%20#?.png": PNG,
    "new\nline.png": PNG + b"trailing",
    "deep/er/no-suffix": JPEG,
    "empty.png": b"",
    "a::b.tiff": b"not an image",
    "'\"$;.jpg": bytes(range(256)),
}


@FORMATS
def test_bytes_come_back_as_they_were(tmp_path: Path, file_format: str) -> None:
    folder = write_files(tmp_path / "in", ODD)
    summary = pack(folder, tmp_path / "out", format=file_format)
    assert (summary.committed.num_rows, summary.committed.num_ok) == (len(ODD), len(ODD))
    expected = [Path(source.uri).read_bytes() for source in sources(folder)]
    assert sorted(expected) == sorted(ODD.values())
    assert read_back(tmp_path / "out") == expected


@FORMATS
@pytest.mark.parametrize("again", ["parquet", "webdataset"])
def test_packed_images_can_be_packed_again(tmp_path: Path, file_format: str, again: str) -> None:
    folder = write_files(tmp_path / "in", numbered(20))
    pack(folder, tmp_path / "first", format=file_format, file_size="7000")
    pack(str(tmp_path / "first"), tmp_path / "second", format=again)
    assert read_back(tmp_path / "second") == list(numbered(20).values())
    assert manifest_of(tmp_path / "first")["num_rows"] == 20


def test_a_parquet_file_says_where_each_image_came_from(tmp_path: Path) -> None:
    files = numbered(600)
    folder = write_files(tmp_path / "in", files)
    pack(folder, tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == ["image", "uri"]
    assert table.column("uri").to_pylist() == [f"{folder}/{name}" for name in files]
    assert table.column("image").to_pylist() == list(files.values())
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet")
    assert [metadata.row_group(group).num_rows for group in range(3)] == [256, 256, 88]


def test_row_groups_of_large_images_are_small(tmp_path: Path) -> None:
    large = {f"{index}.jpg": bytes([index]) * (12 * MIB) for index in range(5)}
    pack(write_files(tmp_path / "in", large), tmp_path / "out")
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet")
    assert [metadata.row_group(group).num_rows for group in range(3)] == [2, 2, 1]


def test_tar_members_are_named_by_row_and_actual_format(tmp_path: Path) -> None:
    files = {
        "0.png": JPEG,
        "1": PNG,
        "2.JPG": JPEG[:20],
        "3.heic": b"\0\0\0\x18ftypheic",
        "4": b"7",
        "5.json": b"{}",
        "6.tiff": encode(photo(8, 8), "tiff"),
    }
    pack(write_files(tmp_path / "in", files), tmp_path / "out", format="webdataset")
    with tarfile.open(tmp_path / "out" / "part-00000.tar") as archive:
        members = archive.getmembers()
        assert [member.name for member in members[::2]] == [
            *("000000000.jpg", "000000001.png", "000000002.jpg", "000000003.heic"),
            *("000000004.bin", "000000005.bin", "000000006.tif"),
        ]
        assert [member.name for member in members[1::2]] == [f"{n:09d}.json" for n in range(7)]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
            (0, 0, 0, "", "", 0o644)
        }
        notes = [json.load(archive.extractfile(member) or io.BytesIO()) for member in members[1::2]]
    assert notes == [{"uri": f"{tmp_path}/in/{name}"} for name in files]


COLUMNS = {
    "path": ["in/a b.jpg", "in/nowhere.jpg", "in/ü%20#?.png"],
    "uri": ["mine", "yours", None],
    "image": [1, 2, 3],
    "input_image": [0.5, float("nan"), None],
    "tags": [["x"], [], None],
    "when": pa.array([0, 1, None], pa.timestamp("ms")),
    "reason": ["why", "not", "this"],
}


@pytest.fixture
def table(tmp_path: Path) -> str:
    write_files(tmp_path / "in", ODD)
    pq.write_table(pa.table(COLUMNS), tmp_path / "list.parquet")
    return str(tmp_path / "list.parquet")


def test_the_users_columns_come_along(tmp_path: Path, table: str) -> None:
    pack(table, tmp_path / "out", column="path")
    packed = pq.read_table(tmp_path / "out")
    assert packed.column_names == [
        *("image", "uri", "input_uri", "input_image_2", "input_image", "tags", "when"),
        "reason",
    ]
    own = pa.table(COLUMNS).take([0, 2])
    assert packed.column("input_uri").to_pylist() == ["mine", None]
    assert packed.column("input_image_2").to_pylist() == [1, 3]
    for name in ("input_image", "tags", "when", "reason"):
        assert packed.column(name).to_pylist() == own.column(name).to_pylist()
    assert packed.schema.field("when").type == pa.timestamp("ms")
    listed = open_inputs(InputSpec((str(tmp_path / "out"),)))
    assert listed.user_schema.names == packed.column_names[1:]


def test_the_users_columns_come_along_as_json(tmp_path: Path, table: str) -> None:
    pack(table, tmp_path / "out", column="path", format="webdataset")
    with tarfile.open(tmp_path / "out" / "part-00000.tar") as archive:
        assert archive.getnames()[::2] == ["000000000.jpg", "000000002.png"]
        first = json.load(archive.extractfile("000000000.json") or io.BytesIO())
    assert first == {
        "uri": f"{tmp_path}/in/a b.jpg",
        "input_uri": "mine",
        "input_image_2": 1,
        "input_image": 0.5,
        "tags": ["x"],
        "when": "1970-01-01 00:00:00.000",
        "reason": "why",
    }


@FORMATS
def test_the_same_images_give_the_same_bytes(tmp_path: Path, file_format: str) -> None:
    folder = write_files(tmp_path / "in", {**ODD, **numbered(20)})
    (tmp_path / "in" / "gone.jpg").symlink_to("nowhere")
    for name in ("one", "two"):
        pack(folder, tmp_path / name, format=file_format, file_size="7000")
    one = files_of(tmp_path / "one")
    assert len(one) > 3
    assert one == files_of(tmp_path / "two")
