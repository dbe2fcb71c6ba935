"""Folders and patterns are listed in the order of names, on every storage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eagleray.core.errors import InputError
from eagleray.io import storage


def test_files_are_listed_at_any_depth_in_the_order_of_their_names(folder: str) -> None:
    for name in ("b/2", "b/10", "a/z/1", "c", "B"):
        storage.put_atomic(storage.join(folder, name), b"12")
    found = list(storage.list_files(folder))
    expected = ["B", "a/z/1", "b/10", "b/2", "c"]
    assert [info.uri for info in found] == [storage.join(folder, name) for name in expected]
    assert {info.size for info in found} == {2}


def test_the_order_is_the_same_wherever_the_files_are(tmp_path: Path) -> None:
    orders = []
    for place in (str(tmp_path / "f"), f"memory://{tmp_path}/f"):
        for name in ("a/x", "a-b", "a.png"):
            storage.put_atomic(storage.join(place, name), b"")
        orders.append([info.uri.removeprefix(place) for info in storage.list_files(place)])
    assert orders[0] == orders[1]


def test_links_that_lead_nowhere_are_listed_without_a_size(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"123")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "good").symlink_to(tmp_path / "real")
    found = {storage.name_of(info.uri): info for info in storage.list_files(str(tmp_path))}
    assert {name: info.size for name, info in found.items()} == {
        "dangling": None,
        "good": 3,
        "real": 3,
    }
    assert found["dangling"].version == ""


def test_a_link_to_itself_leads_nowhere_too(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"123")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    found = list(storage.list_files(str(tmp_path)))
    assert [(storage.name_of(info.uri), info.size) for info in found] == [
        ("a.png", 3),
        ("itself", None),
    ]


@pytest.mark.timeout(60)
def test_a_link_to_a_folder_above_does_not_repeat_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "loop").symlink_to(tmp_path)
    names = [storage.name_of(info.uri) for info in storage.list_files(str(tmp_path))]
    assert names.count("a.png") == 1


def test_a_version_changes_with_the_content(tmp_path: Path) -> None:
    location = str(tmp_path / "a.bin")
    storage.put_atomic(location, b"one")
    os.utime(location, ns=(1, 1))
    before = storage.file_info(location)
    storage.put_atomic(location, b"two")
    after = storage.file_info(location)
    assert (before.size, after.size) == (3, 3)
    assert before.version == "1" != after.version


def test_a_remote_file_is_described_without_a_request() -> None:
    described = storage.file_info("s3://no-such-bucket/a.png")
    assert described == storage.FileInfo("s3://no-such-bucket/a.png", None, "")


def test_tables_hold_what_files_do(folder: str) -> None:
    for number in range(20):
        storage.put_atomic(storage.join(folder, f"{number % 3}", f"{number}.bin"), b"1" * number)
    tables = list(storage.list_tables(folder))
    rows = [tuple(row.values()) for table in tables for row in table.to_pylist()]
    files = list(storage.list_files(folder))
    assert rows == [(info.uri, info.size, info.version) for info in files]
    assert sorted(info.size or 0 for info in files) == list(range(20))
    assert {str(table.schema) for table in tables} == {str(storage.LISTING_SCHEMA)}


def test_a_large_folder_comes_in_several_tables(tmp_path: Path) -> None:
    for number in range(9000):
        (tmp_path / f"{number:05d}").touch()
    sizes = [table.num_rows for table in storage.list_tables(str(tmp_path))]
    assert sizes == [8192, 808]


def test_a_name_that_is_no_unicode_is_spelled_out_in_a_table(tmp_path: Path) -> None:
    storage.put_atomic(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"), b"latin")
    storage.put_atomic(str(tmp_path / "a.png"), b"1")
    (table,) = storage.list_tables(str(tmp_path))
    assert table.column("uri").to_pylist() == [f"{tmp_path}/a.png", f"{tmp_path}/caf\\xe9.png"]


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot access .*/gone \(No such file or directory\)"):
        list(storage.list_tables(str(tmp_path / "gone")))
