"""Storage: files whole or not at all, names letter by letter, URIs that stay URIs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from eagleray import storage
from eagleray.errors import InputError

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


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place, on this machine and behind a URI."""
    return str(tmp_path / "f") if request.param == "local" else f"memory://{tmp_path}/f"


# --- writing ----------------------------------------------------------------------------------


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


def test_folders_are_made_and_removed_with_all_in_them(folder: str) -> None:
    storage.make_folder(storage.join(folder, "a", "b"))
    storage.make_folder(storage.join(folder, "a", "b"))
    storage.put_atomic(storage.join(folder, "a", "b", "c.bin"), b"c")
    storage.put_atomic(storage.join(folder, "d.bin"), b"d")
    storage.remove_tree(storage.join(folder, "a"))
    assert not storage.exists(storage.join(folder, "a"))
    assert storage.exists(storage.join(folder, "d.bin"))


# --- reading ----------------------------------------------------------------------------------


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


def test_a_name_that_is_no_unicode_survives_too(tmp_path: Path) -> None:
    location = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    storage.put_atomic(location, b"latin")
    assert [storage.read_bytes(info.uri) for info in storage.list_files(str(tmp_path))] == [
        b"latin"
    ]


def test_a_name_that_no_file_can_have_is_an_error_of_the_storage(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        storage.read_bytes(f"{tmp_path}/a\0b")


# --- listing ----------------------------------------------------------------------------------


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


def test_patterns_find_files_only(folder: str) -> None:
    for name in ("a.png", "b.jpg", "deep/c.png", "d.png/e.txt"):
        storage.put_atomic(storage.join(folder, name), b"1")
    found = [info.uri for info in storage.glob_files(storage.join(folder, "*.png"))]
    assert found == [storage.join(folder, "a.png")]
    found = [info.uri for info in storage.glob_files(storage.join(folder, "**", "*.png"))]
    assert found == [storage.join(folder, name) for name in ("a.png", "deep/c.png")]
    assert storage.glob_files(storage.join(folder, "*.gif")) == []


# --- names ------------------------------------------------------------------------------------


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
    assert str(caught.value) == ("Cannot open nonsense://bucket/a: Protocol not known: nonsense.")
