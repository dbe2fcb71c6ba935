"""Patterns match files only, and come as rows and as tables."""

from __future__ import annotations

from eagleray.io import storage


def test_patterns_find_files_only(folder: str) -> None:
    for name in ("a.png", "b.jpg", "deep/c.png", "d.png/e.txt"):
        storage.put_atomic(storage.join(folder, name), b"1")
    found = [info.uri for info in storage.glob_files(storage.join(folder, "*.png"))]
    assert found == [storage.join(folder, "a.png")]
    found = [info.uri for info in storage.glob_files(storage.join(folder, "**", "*.png"))]
    assert found == [storage.join(folder, name) for name in ("a.png", "deep/c.png")]
    assert storage.glob_files(storage.join(folder, "*.gif")) == []


def test_patterns_give_tables_too(folder: str) -> None:
    for name in ("a.png", "b.jpg", "deep/c.png"):
        storage.put_atomic(storage.join(folder, name), b"1")
    (table,) = storage.glob_tables(storage.join(folder, "**", "*.png"))
    names = [storage.join(folder, name) for name in ("a.png", "deep/c.png")]
    assert table.column("uri").to_pylist() == names
    assert list(storage.glob_tables(storage.join(folder, "*.gif"))) == []
