"""The layout of an output: what is in it, and what other runs left there."""

from __future__ import annotations

from pathlib import Path

from eagleray.io import storage
from eagleray.sharded.layout import OutputLayout


def test_any_file_outside_the_private_folder_is_another_one(tmp_path: Path) -> None:
    layout = OutputLayout(str(tmp_path / "out"))
    assert not layout.holds_other_files()
    storage.put_atomic(layout.plan, b"{}")
    assert not layout.holds_other_files()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert layout.holds_other_files()


def test_finished_shards_are_those_whose_file_is_whole(tmp_path: Path) -> None:
    layout = OutputLayout(str(tmp_path))
    assert set(layout.finished_shards()) == set()
    for number in (3, 0, 12_345_678_901):
        storage.put_atomic(layout.shard(number), b"")
    (tmp_path / "_eagleray/shards/.shard-00000007.parquet.abc.tmp").write_text("half")
    assert set(layout.finished_shards()) == {0, 3, 12_345_678_901}


def test_folders_of_other_runs_are_found(tmp_path: Path) -> None:
    layout = OutputLayout(str(tmp_path))
    for name in ("manifest-a/0", "manifest-b/1", "quote-c/manifest/0", "shards/0", "plan.json"):
        storage.put_atomic(storage.join(layout.private, name), b"")
    found = [storage.name_of(folder) for folder in layout.abandoned_folders("manifest-b")]
    assert found == ["manifest-a", "quote-c"]
