"""Files are written atomically, with or without replacing existing ones, and removed."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from eagleray.io import storage
from eagleray.io.storage import writing
from eagleray.io.storage.remote import Remote
from eagleray.io.storage.retry import RetryPolicy


def test_a_file_is_written_into_folders_that_are_not_there_yet(folder: str) -> None:
    location = storage.join(folder, "deep", "er", "a.bin")
    storage.put_atomic(location, b"one")
    assert storage.read_bytes(location) == b"one"
    storage.put_atomic(location, b"two")
    assert storage.read_bytes(location) == b"two"
    assert [info.uri for info in storage.list_files(folder)] == [location]


def test_writing_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    storage.put_atomic(str(tmp_path / "a.bin"), b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) & 0o600 == 0o600


@pytest.mark.parametrize("broken", ["os.fsync", "pathlib.Path.replace"])
def test_when_writing_fails_the_old_content_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    location = str(tmp_path / "a.bin")
    storage.put_atomic(location, b"old")

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(broken, disk_full)
        with pytest.raises(OSError, match="No space left"):
            storage.put_atomic(location, b"new and longer")
        with pytest.raises(OSError, match="No space left"):
            storage.put_atomic(str(tmp_path / "b.bin"), b"never there before")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert storage.read_bytes(location) == b"old"


def test_the_name_appears_only_when_the_content_is_complete_and_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.bin"
    seen: list[tuple[bool, int]] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            seen.append((target.exists(), os.fstat(descriptor).st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    storage.put_atomic(str(target), b"12345")
    assert seen == [(False, 5)]


def test_a_folder_is_removed_with_everything_in_it(folder: str) -> None:
    storage.put_atomic(storage.join(folder, "a", "b", "c.bin"), b"c")
    storage.put_atomic(storage.join(folder, "d.bin"), b"d")
    storage.remove_tree(storage.join(folder, "a"))
    assert not storage.exists(storage.join(folder, "a"))
    assert storage.exists(storage.join(folder, "d.bin"))


def test_a_file_that_is_there_is_not_written_again(folder: str) -> None:
    location = storage.join(folder, "deep", "a.json")
    assert storage.put_if_absent(location, b"one")
    assert not storage.put_if_absent(location, b"two")
    assert storage.read_bytes(location) == b"one"
    assert [info.uri for info in storage.list_files(folder)] == [location]


def test_of_many_who_put_at_once_one_wins(tmp_path: Path) -> None:
    for round_number in range(20):
        location = str(tmp_path / str(round_number))
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda me: storage.put_if_absent(location, b"%d" % me), range(8)))  # noqa: B023
        assert sum(won) == 1
        assert storage.read_bytes(location) == b"%d" % won.index(True)
    assert len(list(tmp_path.iterdir())) == 20


def test_a_link_whose_response_was_lost_was_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_and_lose(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)  # what a network mount does when it asks again

    monkeypatch.setattr(os, "link", link_and_lose)
    assert storage.put_if_absent(str(tmp_path / "a"), b"1")
    assert not storage.put_if_absent(str(tmp_path / "a"), b"2")


def test_without_hard_links_nothing_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match=f"the file system of {tmp_path} has no hard links"):
        storage.put_if_absent(str(tmp_path / "a"), b"1")
    assert list(tmp_path.iterdir()) == []


def test_when_writing_once_fails_nothing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        storage.put_if_absent(str(tmp_path / "a"), b"1")
    assert list(tmp_path.iterdir()) == []


QUICK = RetryPolicy(first_wait=0.001, max_wait=0.002)


class KeepingS3:
    """S3 that keeps some of the keys that it should delete, and says so in an answer of 200."""

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)
        self.requester_pays = False

    def call_s3(self, method: str, **_: Any) -> dict[str, Any]:
        assert method == "delete_objects"
        code = self.codes.pop(0)
        return {"Errors": [{"Key": "a", "Code": code, "Message": "text"}]} if code else {}


def test_keys_that_s3_keeps_are_deleted_again_or_reported() -> None:
    keeping = KeepingS3("InternalError", "SlowDown", "")
    writing._delete_keys(Remote("s3://b", keeping, "b", is_s3=True, retries=QUICK), "b", ["a"])
    assert keeping.codes == []
    keeping = KeepingS3("AccessDenied", "")
    with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
        writing._delete_keys(Remote("s3://b", keeping, "b", is_s3=True, retries=QUICK), "b", ["a"])
