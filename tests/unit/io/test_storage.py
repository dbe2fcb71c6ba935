"""Storage: files whole or not at all, names letter by letter, URIs that stay URIs."""

from __future__ import annotations

import errno
import http.client
import io
import os
import stat
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions  # type: ignore[import-untyped]
import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3fs.errors import translate_boto_error

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.storage import S3Options, StorageUnavailableError, faults, writing
from eagleray.io.storage.faults import is_transient, patiently
from eagleray.io.storage.remote import Remote
from eagleray.io.storage.s3_keys import first_cuts, name_between

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
    assert str(caught.value) == (
        "nonsense://bucket/a is not opened: supported are local paths, s3://, gs://, az:// and "
        "abfs://, and not nonsense://; copy it to one of them, or mount it as a folder."
    )


# --- written once ------------------------------------------------------------------------------


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


def test_a_link_whose_answer_was_lost_was_ours(
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


# --- parts of files ----------------------------------------------------------------------------


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


# --- listings as tables ------------------------------------------------------------------------


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
    with pytest.raises(InputError, match=r"Cannot look at .*/gone \(No such file or directory\)"):
        list(storage.list_tables(str(tmp_path / "gone")))


def test_patterns_give_tables_too(folder: str) -> None:
    for name in ("a.png", "b.jpg", "deep/c.png"):
        storage.put_atomic(storage.join(folder, name), b"1")
    (table,) = storage.glob_tables(storage.join(folder, "**", "*.png"))
    names = [storage.join(folder, name) for name in ("a.png", "deep/c.png")]
    assert table.column("uri").to_pylist() == names
    assert list(storage.glob_tables(storage.join(folder, "*.gif"))) == []


# --- cutting a range of names ------------------------------------------------------------------

NAMES = st.text(
    st.characters(min_codepoint=1, exclude_categories=["Cs"])
    | st.sampled_from("0189azAZ/_~\U0010ffff"),
    min_size=1,
    max_size=8,
)


@given(names=st.lists(NAMES, min_size=1, max_size=2, unique=True), just_after=st.booleans())
def test_a_cut_lies_between_the_names(names: list[str], just_after: bool) -> None:
    low, *rest = sorted(f"p/{name}" for name in names)
    cut = name_between(low, rest[0] if rest else None, 2, just_after=just_after)
    if cut is not None:
        encoded = [name.encode() for name in [low, cut, *rest]]
        assert encoded == sorted(set(encoded))
        assert cut.startswith("p/")


@given(names=st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_first_cuts_come_in_order_after_the_page(names: list[str]) -> None:
    first, last = sorted(f"p/{name}" for name in names)
    encoded = [name.encode() for name in [last, *first_cuts(first, last, 2)]]
    assert encoded == sorted(set(encoded))


@pytest.mark.parametrize(
    ("low", "high", "just_after", "expected"),
    [
        ("p/0999", None, False, "p/5"),
        ("p/0999", "p/5", False, "p/2"),
        ("p/0999", "p/5", True, "p/1"),
        ("p/0999", "p/1", False, None),
        ("p/0499", "p/1", False, "p/07"),
        ("p/img", None, False, "p/r"),
        ("p/999", None, False, None),
        ("p/", None, False, None),
    ],
)
def test_cuts_are_about_half_way(
    low: str, high: str | None, just_after: bool, expected: str | None
) -> None:
    assert name_between(low, high, 2, just_after=just_after) == expected


# --- faults that pass, and others --------------------------------------------------------------


def s3_error(code: str, status: int) -> BaseException:
    """What s3fs raises for an answer of S3."""
    response = {
        "Error": {"Code": code, "Message": "text"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error: BaseException = translate_boto_error(botocore.exceptions.ClientError(response, "Get"))
    return error


class HttpError(Exception):
    """What clients of other object stores raise."""

    def __init__(self, code: int) -> None:
        super().__init__("text")
        self.code = code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (s3_error("SlowDown", 503), True),
        (s3_error("503", 503), True),
        (s3_error("InternalError", 500), True),
        (s3_error("500", 500), True),
        (s3_error("BadGateway", 502), True),
        (s3_error("504", 504), True),
        (s3_error("TooManyRequests", 429), True),
        (s3_error("429", 429), True),
        (s3_error("RequestTimeout", 400), True),
        (s3_error("ThrottlingException", 400), True),
        (s3_error("ConditionalRequestConflict", 409), True),
        (s3_error("OperationAborted", 409), True),
        (s3_error("NoSuchKey", 404), False),
        (s3_error("404", 404), False),
        (s3_error("NoSuchBucket", 404), False),
        (s3_error("AccessDenied", 403), False),
        (s3_error("403", 403), False),
        (s3_error("InvalidAccessKeyId", 403), False),
        (s3_error("SignatureDoesNotMatch", 403), False),
        (s3_error("ExpiredToken", 400), False),
        (s3_error("PreconditionFailed", 412), False),
        (s3_error("InvalidRange", 416), False),
        (s3_error("NotImplemented", 501), False),
        (s3_error("InvalidBucketName", 400), False),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://a"), True),
        (botocore.exceptions.ConnectTimeoutError(endpoint_url="http://a"), True),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://a"), True),
        (botocore.exceptions.ConnectionClosedError(endpoint_url="http://a"), True),
        (botocore.exceptions.SSLError(endpoint_url="a", error="EOF occurred"), True),
        (botocore.exceptions.SSLError(endpoint_url="a", error="CERTIFICATE_VERIFY_FAILED"), False),
        (botocore.exceptions.NoCredentialsError(), False),
        (botocore.exceptions.ParamValidationError(report="name"), False),
        (botocore.exceptions.ProfileNotFound(profile="p"), False),
        (aiohttp.ClientPayloadError("cut short"), True),
        (aiohttp.ServerDisconnectedError(), True),
        (http.client.IncompleteRead(b""), True),
        (TimeoutError(), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (OSError(errno.EBUSY, "busy"), True),
        (OSError(errno.EIO, "i/o"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (FileNotFoundError(errno.ENOENT, "none"), False),
        (PermissionError(errno.EACCES, "no"), False),
        (IsADirectoryError(errno.EISDIR, "folder"), False),
        (HttpError(503), True),
        (HttpError(404), False),
        (ValueError("text"), False),
        (KeyError("text"), False),
    ],
    ids=repr,
)
def test_only_faults_that_pass_are_tried_again(error: BaseException, expected: bool) -> None:
    assert is_transient(error) is expected


def test_a_conflict_that_hides_an_answer_cut_short_is_seen() -> None:
    error = aiohttp.ClientPayloadError("cut short")
    error.__cause__ = aiohttp.http_exceptions.ContentLengthError("10 of 20")  # has a code: 400
    assert is_transient(error)


class Flaky:
    """A file system that fails some times before it answers."""

    def __init__(self, error: BaseException, times: int) -> None:
        self.left = times
        self.num_calls = 0
        self._error = error

    def call(self) -> str:
        self.num_calls += 1
        self.left -= 1
        if self.left >= 0:
            raise self._error
        return "answer"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(faults, "_LONGEST_WAIT", 0.002)


@pytest.mark.parametrize(
    ("error", "times", "num_calls", "expected"),
    [
        (s3_error("SlowDown", 503), 11, 12, None),
        (s3_error("SlowDown", 503), 12, 12, StorageUnavailableError),
        (s3_error("NoSuchKey", 404), 1, 1, FileNotFoundError),
        (s3_error("AccessDenied", 403), 1, 1, PermissionError),
        (ValueError("text"), 1, 1, ValueError),
        # Nothing has ever answered, so perhaps nothing is there.
        (botocore.exceptions.EndpointConnectionError(endpoint_url="a"), 2, 3, None),
        (
            botocore.exceptions.EndpointConnectionError(endpoint_url="a"),
            3,
            3,
            StorageUnavailableError,
        ),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="a"), 11, 12, None),
    ],
)
@pytest.mark.usefixtures("quick")
def test_patience_has_an_end(
    error: BaseException, times: int, num_calls: int, expected: type[Exception] | None
) -> None:
    flaky = Flaky(error, times)
    if expected is None:
        assert patiently(flaky, flaky.call) == "answer"
    else:
        with pytest.raises(expected):
            patiently(flaky, flaky.call)
    assert flaky.num_calls == num_calls


@pytest.mark.usefixtures("quick")
def test_a_storage_that_has_answered_is_waited_for() -> None:
    flaky = Flaky(botocore.exceptions.EndpointConnectionError(endpoint_url="a"), 0)
    assert patiently(flaky, flaky.call) == "answer"
    flaky.left = 11
    assert patiently(flaky, flaky.call) == "answer"


@pytest.mark.usefixtures("quick")
def test_no_try_begins_after_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_LAST_ATTEMPT_BEFORE", 0.0)
    flaky = Flaky(s3_error("SlowDown", 503), 99)
    with pytest.raises(StorageUnavailableError, match=r"^text, 1 times in 0 s$"):
        patiently(flaky, flaky.call)


@pytest.mark.parametrize(("times", "expected"), [(3, b"1"), (4, None)])
@pytest.mark.usefixtures("quick")
def test_a_network_mount_may_stumble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, expected: bytes | None
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    flaky = Flaky(OSError(errno.ESTALE, "Stale file handle"), times)
    opened = Path.open

    def stumble(path: Path, *arguments: Any) -> Any:
        flaky.call()
        return opened(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", stumble)
        if expected is None:
            with pytest.raises(OSError, match="Stale file handle"):
                storage.read_bytes(str(tmp_path / "a"))
        else:
            assert storage.read_bytes(str(tmp_path / "a")) == expected
    assert flaky.num_calls == 4


class KeepingS3:
    """S3 that keeps some of the keys that it should delete, and says so in an answer of 200."""

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)
        self.requester_pays = False

    def call_s3(self, method: str, **_: Any) -> dict[str, Any]:
        assert method == "delete_objects"
        code = self.codes.pop(0)
        return {"Errors": [{"Key": "a", "Code": code, "Message": "text"}]} if code else {}


@pytest.mark.usefixtures("quick")
def test_keys_that_s3_keeps_are_deleted_again_or_told() -> None:
    keeping = KeepingS3("InternalError", "SlowDown", "")
    writing._delete_keys(Remote("s3://b", keeping, "b", is_s3=True), "b", ["a"])
    assert keeping.codes == []
    keeping = KeepingS3("AccessDenied", "")
    with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
        writing._delete_keys(Remote("s3://b", keeping, "b", is_s3=True), "b", ["a"])


# --- options of S3 -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (S3Options(), {"key": "k"}),
        (S3Options(endpoint="http://a:1"), {"key": "k", "endpoint_url": "http://a:1"}),
        (S3Options(region="r"), {"key": "k", "client_kwargs": {"region_name": "r"}}),
        (S3Options(profile="p"), {"key": "k", "profile": "p"}),
        (
            S3Options(anonymous=True, requester_pays=True),
            {"key": "k", "anon": True, "requester_pays": True},
        ),
    ],
)
def test_options_become_defaults_of_the_process(
    monkeypatch: pytest.MonkeyPatch, options: S3Options, expected: dict[str, object]
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"key": "k"})
    storage.use_s3(options)
    assert fsspec.config.conf["s3"] == expected


def test_options_not_given_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(fsspec.config.conf, "s3", raising=False)
    storage.use_s3(S3Options())
    assert "s3" not in fsspec.config.conf
    storage.use_s3(S3Options(endpoint="http://a:1"))
    storage.use_s3(S3Options(region="r"))
    expected = {"endpoint_url": "http://a:1", "client_kwargs": {"region_name": "r"}}
    assert fsspec.config.conf.pop("s3") == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "localhost:9000"}, "S3 endpoint 'localhost:9000' is no URL"),
        ({"anonymous": True, "profile": "p"}, "give one of the two"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        S3Options(**options)
