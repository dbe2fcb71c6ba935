"""Files and byte ranges are read whatever their names are; pipes and missing files are refused."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from eagleray.io import storage

ODD_NAMES = [
    "a b.png",
    " leading",
    "100%.png",
    "a%20b.png",
    "new\nline.png",
    "grün 猫 🐈.png",
    "a::b.png",
    "a#b.png",
    "a?b.png",
    "a*b.png",
    "[ab].png",
    "~a.png",
    "$HOME.png",
    "-rf",
    ".hidden",
    "back\\slash",
    "quote'\".png",
]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, b"0123456789"), (4, b"0123"), (0, b""), (10, b"0123456789"), (99, b"0123456789")],
)
def test_a_limit_reads_the_first_bytes_only(
    folder: str, limit: int | None, expected: bytes
) -> None:
    location = storage.join(folder, "a.bin")
    storage.put_atomic(location, b"0123456789")
    assert storage.read_bytes(location, limit=limit) == expected


def test_what_is_there_and_what_is_not(folder: str) -> None:
    storage.put_atomic(storage.join(folder, "a", "b.bin"), b"b")
    assert storage.exists(storage.join(folder, "a", "b.bin"))
    assert not storage.is_folder(storage.join(folder, "a", "b.bin"))
    assert storage.exists(storage.join(folder, "a"))
    assert storage.is_folder(storage.join(folder, "a"))
    assert not storage.exists(storage.join(folder, "c"))
    assert not storage.is_folder(storage.join(folder, "c"))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(folder, "c"))


@pytest.mark.timeout(20)
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="named pipe"):
        storage.read_bytes(str(tmp_path / "pipe"))
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(OSError, match="named pipe"):
        storage.read_bytes(str(tmp_path / "link"), limit=10)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_survive_listing_and_reading(folder: str, name: str) -> None:
    storage.put_atomic(storage.join(folder, name, name), name.encode())
    storage.put_atomic(storage.join(folder, "other"), b"")
    found = [info for info in storage.list_files(folder) if info.size]
    assert [info.uri for info in found] == [storage.join(folder, name, name)]
    assert storage.read_bytes(found[0].uri) == name.encode()
    assert storage.name_of(found[0].uri) == name
    assert storage.exists(found[0].uri)


def test_a_name_that_is_not_utf8_is_the_same_file_for_every_function(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/d\xe9/caf\xe8 \xc3\xa9.png"
    text = f"{tmp_path}/d\\xe9/caf\\xe8 é.png"
    assert storage.absolute(os.fsdecode(raw)) == storage.absolute(text) == text
    storage.put_atomic(text, b"new")
    assert Path(os.fsdecode(raw)).read_bytes() == b"new"
    assert not storage.put_if_absent(text, b"other")
    folder = storage.absolute(str(Path(os.fsdecode(raw)).parent))
    assert storage.is_folder(folder)
    assert storage.exists(text)
    (info,) = storage.list_files(folder)
    assert (info.uri, info.size) == (text, 3)
    assert info == storage.file_info(text) == storage.file_info(os.fsdecode(raw))
    assert storage.size_of(text) == 3
    assert storage.read_bytes(text) == storage.open_seekable(text).read() == b"new"
    assert storage.glob_files(f"{folder}/*.png") == [info]
    storage.delete(text)
    assert not storage.exists(text)
    storage.remove_tree(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_backslash_in_a_name_stays_one(tmp_path: Path) -> None:
    names = ["caf\\xe9.png", "\\x41.png", "a\\xc3\\xa9"]
    for name in names:
        (tmp_path / name).write_text(name)
    found = {info.uri for info in storage.list_files(str(tmp_path))}
    assert found == {f"{tmp_path}/{name}" for name in names}
    assert {storage.read_bytes(uri).decode() for uri in found} == set(names)


def test_a_name_that_no_file_can_have_is_an_error_of_the_storage(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        storage.read_bytes(f"{tmp_path}/a\0b")


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 4, b"0123"), (3, 2, b"34"), (8, 9, b"89"), (10, 1, b""), (99, 1, b""), (3, 0, b"")],
)
def test_ranges_end_where_the_file_does(
    folder: str, start: int, length: int, expected: bytes
) -> None:
    location = storage.join(folder, "a.bin")
    storage.put_atomic(location, b"0123456789")
    assert storage.read_range(location, start, length) == expected
    assert storage.size_of(location) == 10


def test_an_archive_is_read_in_place(folder: str) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", "first" * 1000)
        archive.writestr("b.txt", "second")
    location = storage.join(folder, "a.zip")
    storage.put_atomic(location, content.getvalue())
    with storage.open_seekable(location) as file, zipfile.ZipFile(file) as archive:
        assert archive.read("b.txt") == b"second"
        assert archive.read("a.txt") == b"first" * 1000
        assert file.seek(0, os.SEEK_END) == len(content.getvalue())
        assert file.read() == b""


@pytest.mark.parametrize(
    "ask", [storage.open_seekable, storage.size_of, lambda name: storage.read_range(name, 0, 1)]
)
def test_what_is_not_there_has_no_parts(folder: str, ask: Callable[[str], object]) -> None:
    with pytest.raises(FileNotFoundError):
        ask(storage.join(folder, "missing.bin"))
    storage.put_atomic(storage.join(folder, "deep", "a.bin"), b"1")
    with pytest.raises((FileNotFoundError, IsADirectoryError)):
        ask(storage.join(folder, "deep"))


def test_a_file_is_removed_whether_it_is_there_or_not(folder: str) -> None:
    location = storage.join(folder, "a.bin")
    storage.put_atomic(location, b"1")
    storage.delete(location)
    assert not storage.exists(location)
    storage.delete(location)
