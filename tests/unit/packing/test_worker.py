"""A shard packed by a worker, also beside others and after a kill."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from eagleray.core.errors import JobFailedError
from eagleray.io import storage
from eagleray.packing.receipt import PackedShard
from eagleray.packing.worker import PackContext
from tests.support.packing import (
    FORMATS,
    JPEG,
    files_of,
    here,
    in_memory,
    manifest_of,
    numbered,
    opened,
    pack,
    read_back,
    request,
    run,
    write_files,
)


@FORMATS
def test_a_file_never_exceeds_its_size_at_any_estimate(tmp_path: Path, file_format: str) -> None:
    files = numbered(10, size=300_000)  # 128 KiB is what is expected of each
    table = in_memory(tmp_path / "large.csv", files)
    pack(table, tmp_path / "out", format=file_format, file_size="1MiB")
    manifest = manifest_of(tmp_path / "out")
    names = [file["name"].partition(".")[0] for file in manifest["files"]]
    assert names == ["part-00000", "part-00000_00001", "part-00000_00002", "part-00001"]
    assert [file["first_row"] for file in manifest["files"]] == [0, 3, 6, 8]
    assert read_back(tmp_path / "out") == list(files.values())


def test_an_image_larger_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    files = {"0.jpg": b"a" * 100, "1.jpg": b"b" * 5000, "2.jpg": b"c" * 100}
    pack(write_files(tmp_path / "in", files), tmp_path / "out", file_size="1000")
    assert [file["num_rows"] for file in manifest_of(tmp_path / "out")["files"]] == [1, 1, 1]


def test_bytes_of_unknown_number_are_counted(tmp_path: Path) -> None:
    files = {"fits": b"a" * 1000, "not": b"b" * 1001}
    job = opened(request(in_memory(tmp_path / "count.csv", files), tmp_path / "out"))

    def strictly(shards: Iterable[int], context: PackContext, *_: object) -> Iterator[PackedShard]:
        return here(shards, dataclasses.replace(context, max_bytes=1000))

    assert run(job, strictly).reasons == {"too_many_bytes": 1}
    assert read_back(tmp_path / "out") == [b"a" * 1000]


def orphan(tmp_path: Path) -> tuple[str, Path]:
    """Leave a part without a receipt, as a kill between the two does, and change its input."""
    folder = write_files(tmp_path / "in", numbered(4))
    job = opened(request(folder, tmp_path / "out"))
    list(here([0], job.context))
    receipt = Path(job.layout.shard(0))
    content = receipt.read_bytes()
    receipt.unlink()
    write_files(tmp_path / "in", {"000.jpg": b"x" * 1000})
    receipt.with_name("kept").write_bytes(content)
    return folder, receipt


def test_an_input_that_changed_beside_a_kill_is_not_mixed_in(tmp_path: Path) -> None:
    folder, _ = orphan(tmp_path)
    with pytest.raises(JobFailedError, match="its inputs have changed since") as caught:
        pack(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "_manifest.json").exists()
    named = Path(str(caught.value).split(" was left", maxsplit=1)[0])
    named.unlink()  # as the sentence says
    pack(folder, tmp_path / "out")
    assert read_back(tmp_path / "out")[0] == b"x" * 1000


def test_a_run_beside_this_one_that_was_first_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, receipt = orphan(tmp_path)
    original = storage.put_if_absent

    def put_late(location: str, content: bytes) -> bool:
        if location.endswith("part-00000.parquet"):
            receipt.write_bytes(receipt.with_name("kept").read_bytes())
        return original(location, content)

    monkeypatch.setattr(storage, "put_if_absent", put_late)
    pack(folder, tmp_path / "out")
    assert read_back(tmp_path / "out") == list(numbered(4).values())


def test_a_file_that_the_standing_receipt_does_not_know_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.csv").write_text("path\na.jpg\n")
    job = opened(request(str(tmp_path / "list.csv"), tmp_path / "out"))
    list(here([0], job.context))  # found nothing, and its receipt comes late
    receipt = Path(job.layout.shard(0))
    content = receipt.read_bytes()
    receipt.unlink()
    write_files(tmp_path, {"a.jpg": JPEG})
    original = storage.put_if_absent

    def put_late(location: str, own: bytes) -> bool:
        if location == str(receipt):
            receipt.write_bytes(content)
        return original(location, own)

    monkeypatch.setattr(storage, "put_if_absent", put_late)
    summary = run(job, here)
    assert (summary.committed.files, summary.committed.num_failed) == ((), 1)
    assert list(files_of(tmp_path / "out")) == ["_failures.parquet"]
