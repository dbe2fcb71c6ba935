"""Names are appended, made absolute and kept character by character."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.core.errors import InputError
from eagleray.io import storage


@pytest.mark.parametrize(
    ("location", "parts", "expected"),
    [
        ("/data", ("a", "b.png"), "/data/a/b.png"),
        ("/data/", ("a",), "/data/a"),
        ("/", ("a",), "/a"),
        ("data", ("a",), "data/a"),
        ("s3://bucket", ("a",), "s3://bucket/a"),
        ("s3://bucket/data/", ("a", "b"), "s3://bucket/data/a/b"),
        ("file:///data", ("a",), "file:///data/a"),
        pytest.param(
            "memory://",
            ("a",),
            "memory://a",
        ),
        pytest.param(
            "file:///",
            ("a",),
            "file:///a",
        ),
    ],
)
def test_names_are_appended_to_paths_and_uris(
    location: str, parts: tuple[str, ...], expected: str
) -> None:
    assert storage.join(location, *parts) == expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/data/a.png", "a.png"),
        ("/data/", "data"),
        ("a.png", "a.png"),
        ("s3://bucket/data/a b.png", "a b.png"),
        ("s3://bucket", "bucket"),
    ],
)
def test_the_last_name_of_a_location(location: str, expected: str) -> None:
    assert storage.name_of(location) == expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/data/a.png", "/data/a.png"),
        ("file:///data/a%20b.png", "/data/a%20b.png"),
        ("s3://bucket//a", "s3://bucket//a"),
        ("memory://a/../b", "memory://a/../b"),
        ("a b.png", "{cwd}/a b.png"),
        ("~/a.png", "{home}/a.png"),
        pytest.param(
            "~nobody-of-this-name/a.png",
            "{cwd}/~nobody-of-this-name/a.png",
        ),
    ],
)
def test_paths_are_made_absolute_and_uris_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert storage.absolute(location) == expected.format(cwd=tmp_path, home="/home/somebody")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://bucket/a", True),
        ("memory://a", True),
        ("file:///a", False),
        ("/a", False),
        ("a:b", False),
        ("C:/a", False),
    ],
)
def test_only_a_scheme_makes_a_location_remote(location: str, expected: bool) -> None:
    assert storage.is_remote(location) is expected


@pytest.mark.parametrize(
    "ask",
    [
        storage.read_bytes,
        storage.exists,
        storage.is_folder,
        storage.glob_files,
        storage.remove_tree,
        lambda location: list(storage.list_files(location)),
        lambda location: storage.put_atomic(location, b""),
    ],
)
def test_an_unknown_scheme_is_one_sentence(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(InputError) as caught:
        ask("nonsense://bucket/a")
    assert str(caught.value) == (
        "nonsense://bucket/a is not opened: supported are local paths, s3://, gs://, az:// and "
        "abfs://, and not nonsense://; copy it to one of them, or mount it as a folder."
    )
