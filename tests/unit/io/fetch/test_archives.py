"""Members of tar and zip archives are read; damaged archives are rejected."""

from __future__ import annotations

import io
import struct
import tarfile
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagleray.core.errors import BadImageError, InputError, Reason
from eagleray.io import storage
from eagleray.io.fetch import ImageReader, ImageSource, packed_uri
from eagleray.io.fetch.archives import list_members
from eagleray.io.fetch.source import Packing
from tests.support.containers import (
    member_source,
    write_tar,
    write_zip,
)
from tests.support.image_sources import CONTENTS, change, failure, noise, reader


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_of_a_zip_are_read(tmp_path: Path, compression: int, streamed: bool) -> None:
    location = write_zip(tmp_path / "a.zip", CONTENTS, compression=compression, streamed=streamed)
    read = {
        name: reader().read(member_source(location, "zip", name)) for name in reversed(CONTENTS)
    }
    assert read == CONTENTS


def test_members_of_a_tar_are_read(tmp_path: Path) -> None:
    location = write_tar(tmp_path / "a.tar", CONTENTS)
    read = {
        name: reader().read(member_source(location, "tar", name)) for name in reversed(CONTENTS)
    }
    assert read == CONTENTS


def test_archives_may_be_behind_a_uri(tmp_path: Path) -> None:
    content = Path(write_zip(tmp_path / "a.zip", CONTENTS)).read_bytes()
    storage.put_atomic("memory:///archives/a.zip", content)
    source = member_source("memory:///archives/a.zip", "zip", "a.jpg")
    assert reader().read(source) == CONTENTS["a.jpg"]


def test_data_before_a_zip_do_not_move_its_members(tmp_path: Path) -> None:
    location = Path(write_zip(tmp_path / "a.zip", CONTENTS))
    location.write_bytes(b"#!/bin/sh\n" + location.read_bytes())
    assert reader().read(member_source(str(location), "zip", "a.jpg")) == CONTENTS["a.jpg"]


def test_a_deflate_stream_longer_than_its_content_is_read(tmp_path: Path) -> None:
    # Short stored blocks, as a writer makes them that flushes after every few bytes.
    content = noise(5_000)
    parts = (content[start : start + 10] for start in range(0, 5_000, 10))
    blocks = b"".join(b"\x00\x0a\x00\xf5\xff" + part for part in parts)
    packed = blocks + b"\x01\x00\x00\xff\xff"
    location = Path(write_zip(tmp_path / "a.zip", {"a.jpg": content}))
    header = struct.Struct("<4s5H3L2H")
    fields = list(header.unpack_from(location.read_bytes()))
    fields[7] = len(packed)
    location.write_bytes(header.pack(*fields) + b"a.jpg" + packed)
    source = ImageSource("zip://a.jpg::x", 5_000, "zip", str(location), 0)
    assert reader().read(source) == content


@pytest.mark.parametrize(
    ("at", "values", "message"),
    [
        (0, b"XX", "the archive is damaged, or has changed since it was listed"),
        (6, b"\x01", "it is encrypted in the archive"),
        (8, b"\x0c", "the archive compresses it with method 12; only stored and deflated are read"),
        (14, b"\0\0\0\0", "its checksum in the archive does not match"),
        (35, b"\xff" * 20, "its data in the archive are damaged"),
    ],
)
def test_a_damaged_zip_member_is_unreadable(
    tmp_path: Path, at: int, values: bytes, message: str
) -> None:
    location = write_zip(tmp_path / "a.zip", {"a.jpg": noise(4000), "b.jpg": b"fine"})
    first, second = (member_source(location, "zip", name) for name in ("a.jpg", "b.jpg"))
    change(location, at, values)
    assert failure(first) == (Reason.UNREADABLE, message)
    assert reader().read(second) == b"fine"


def test_a_stored_zip_member_with_a_wrong_byte_is_unreadable(tmp_path: Path) -> None:
    content = noise(1000)
    location = write_zip(tmp_path / "a.zip", {"a.jpg": content}, compression=zipfile.ZIP_STORED)
    source = member_source(location, "zip", "a.jpg")
    change(location, 500, b"wrong")
    assert failure(source) == (Reason.UNREADABLE, "its checksum in the archive does not match")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    location = write_zip(tmp_path / "a.zip", {"a.jpg": b"\0" * 200 * 2**20})
    honest = member_source(location, "zip", "a.jpg")
    lying = replace(honest, size=1000)
    tracemalloc.start()
    try:
        assert failure(honest)[0] == Reason.TOO_MANY_BYTES
        assert failure(lying) == (
            Reason.UNREADABLE,
            "it decompresses to more than the archive says",
        )
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packing", ["tar", "zip"])
def test_an_archive_cut_short_after_it_was_listed(tmp_path: Path, packing: str) -> None:
    content = noise(9_000)
    if packing == "tar":
        location = write_tar(tmp_path / "a.tar", {"a.jpg": content})
        source = member_source(location, "tar", "a.jpg")
    else:
        location = write_zip(tmp_path / "a.zip", {"a.jpg": content})
        source = member_source(location, "zip", "a.jpg")
    Path(location).write_bytes(Path(location).read_bytes()[:5_000])
    assert failure(source) == (Reason.UNREADABLE, "the archive ends before this member does")
    Path(location).unlink()
    assert failure(source)[0] == Reason.MISSING


def test_a_member_too_large_says_how_large_it_is(tmp_path: Path) -> None:
    location = write_tar(tmp_path / "a.tar", {"a.jpg": b"12345"})
    reason, message = failure(member_source(location, "tar", "a.jpg"), ImageReader(4))
    assert (reason, message) == (Reason.TOO_MANY_BYTES, "the file has 5 bytes, the limit is 4")


def tar_with_links(path: Path) -> str:
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (
            ("early", tarfile.LNKTYPE, "cats/a.jpg"),
            ("cats", tarfile.DIRTYPE, ""),
            ("pipe", tarfile.FIFOTYPE, ""),
            ("cats/soft.jpg", tarfile.SYMTYPE, "a.jpg"),
            ("dogs/soft.jpg", tarfile.SYMTYPE, "../cats/a.jpg"),
            ("nowhere", tarfile.SYMTYPE, "/etc/passwd"),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
        entry = tarfile.TarInfo("cats/a.jpg")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"cat!"))
    return str(path)


def test_links_in_a_tar_lead_to_its_own_members_only(tmp_path: Path) -> None:
    location = tar_with_links(tmp_path / "a.tar")
    names = [member.name for member in list_members(location, "tar")]
    assert names == ["early", "cats/soft.jpg", "dogs/soft.jpg", "nowhere", "cats/a.jpg"]
    for name in ("early", "cats/soft.jpg", "dogs/soft.jpg", "cats/a.jpg"):
        assert reader().read(member_source(location, "tar", name)) == b"cat!"
    reason, message = failure(member_source(location, "tar", "nowhere"))
    assert reason == Reason.MISSING
    assert "a link" in message


def test_a_sparse_member_is_named_and_not_misread(tmp_path: Path) -> None:
    location = Path(write_tar(tmp_path / "a.tar", {"a.jpg": b"x" * 512}))
    content = bytearray(location.read_bytes())
    content[156:157] = tarfile.GNUTYPE_SPARSE
    content[386:495] = bytes(97) + b"000000001000"
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    location.write_bytes(content)
    assert failure(member_source(str(location), "tar", "a.jpg"))[0] == Reason.MISSING


@pytest.mark.parametrize(
    ("cut", "fault"),
    [
        (slice(None, 2_000), "(unexpected end of data)"),
        (slice(None, 4_000), "(damaged at byte 3,584)"),
        (slice(None, 4_096), "(unexpected end of data)"),
        (slice(0, 0), "(empty file)"),
        (slice(100, None), "(bad checksum)"),
    ],
)
def test_a_damaged_tar_is_not_taken_for_a_shorter_one(
    tmp_path: Path, cut: slice, fault: str
) -> None:
    location = Path(write_tar(tmp_path / "a.tar", {"1.jpg": noise(3000), "2.jpg": b"2"}))
    location.write_bytes(location.read_bytes()[cut])
    with pytest.raises(InputError) as caught:
        list_members(str(location), "tar")
    assert str(caught.value) == (
        f"{location} is not a whole tar archive {fault}; copy it again, or leave it out."
    )


@pytest.mark.parametrize("zeros", [0, 512, 2**21])
def test_tars_put_one_after_the_other_are_read_whole(tmp_path: Path, zeros: int) -> None:
    first = Path(write_tar(tmp_path / "1.tar", {"x.jpg": b"first"})).read_bytes()
    second = Path(write_tar(tmp_path / "2.tar", {"x.jpg": b"second", "y.jpg": b"y"})).read_bytes()
    location = tmp_path / "a.tar"
    location.write_bytes(first + bytes(zeros) + second + bytes(zeros))
    found = list_members(str(location), "tar")
    sources = [ImageSource("", one.size, "tar", str(location), one.offset) for one in found]
    assert [reader().read(source) for source in sources] == [b"first", b"second", b"y"]


def test_what_follows_a_tar_and_is_none_is_not_passed_over(tmp_path: Path) -> None:
    location = Path(write_tar(tmp_path / "a.tar", {"x.jpg": b"first"}))
    location.write_bytes(location.read_bytes() + b"a signature")
    with pytest.raises(InputError, match=r"is not a whole tar archive \(damaged at byte 10,240\)"):
        list_members(str(location), "tar")


def test_zips_put_one_after_the_other_are_refused_and_a_zip_with_a_prefix_is_read(
    tmp_path: Path,
) -> None:
    location = Path(write_zip(tmp_path / "a.zip", {"x.jpg": b"content"}))
    content = location.read_bytes()
    location.write_bytes(b"#!/bin/sh\n" + content)
    assert reader().read(member_source(str(location), "zip", "x.jpg")) == b"content"
    location.write_bytes(content + content)
    with pytest.raises(InputError, match="members at its start are not in its directory"):
        list_members(str(location), "zip")


@pytest.mark.parametrize(
    ("raw", "name"), [("é".encode(), "é"), (b"\x82.", "é."), (b"\xe9.", "Θ."), (b"ab", "ab")]
)
def test_names_in_a_zip_may_be_utf8_without_saying_so(
    tmp_path: Path, raw: bytes, name: str
) -> None:
    location = Path(write_zip(tmp_path / "a.zip", {"caf??": b"content"}))
    location.write_bytes(location.read_bytes().replace(b"caf??", b"caf" + raw))
    (member,) = list_members(str(location), "zip")
    assert member.name == f"caf{name}"
    assert reader().read(member_source(str(location), "zip", member.name)) == b"content"


@pytest.mark.parametrize(
    ("packing", "start", "words"),
    [
        ("tar", b"\x1f\x8b\x08", "compressed with gzip in spite of its name"),
        ("tar", b"\xfd7zXZ\0", "compressed with xz in spite of its name"),
        ("tar", b"7z\xbc\xaf\x27\x1c", "a 7z archive in spite of its name"),
        ("tar", b"PK\x03\x04", "a zip archive in spite of its name"),
        ("tar", b"<html>Not found</html>" * 30, "a text in spite of its name"),
        ("zip", b"Rar!\x1a\x07", "a RAR archive in spite of its name"),
        ("zip", bytes(257) + b"ustar\0", "a tar archive in spite of its name"),
    ],
)
def test_an_archive_that_is_another_is_named(
    tmp_path: Path, packing: Packing, start: bytes, words: str
) -> None:
    location = tmp_path / f"a.{packing}"
    location.write_bytes(start + b"\xff" * 600 * (b"html" not in start))
    with pytest.raises(InputError, match=rf"^{location} is {words}, so that no image in it"):
        list_members(str(location), packing)


def test_a_tar_with_a_damaged_header_in_the_middle_is_refused(tmp_path: Path) -> None:
    location = write_tar(tmp_path / "a.tar", {f"{index}.jpg": b"x" for index in range(5)})
    change(location, 2 * 1024 + 20, b"garbage")
    with pytest.raises(InputError, match="damaged at byte 2,048"):
        list_members(location, "tar")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and so on", noise(10_000)])
def test_what_is_no_zip_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.zip is not a whole zip archive \(.*; copy it again"):
        list_members(str(tmp_path / "a.zip"), "zip")


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, 10_000), values=st.binary(min_size=1, max_size=8), data=st.data())
def test_any_damage_gives_a_reason_and_nothing_else(
    tmp_path: Path, at: int, values: bytes, data: st.DataObject
) -> None:
    packing: Packing = data.draw(st.sampled_from(["tar", "zip"]))
    members = {"a.jpg": noise(500), "b.jpg": b"abc" * 500}
    path = tmp_path / f"a.{packing}"
    location = write_tar(path, members) if packing == "tar" else write_zip(path, members)
    change(location, at % path.stat().st_size, values)
    try:
        found = list_members(location, packing)
    except InputError:
        return
    for member in found:
        source = ImageSource(
            packed_uri(packing, member.name, location),
            member.size,
            packing,
            location,
            member.offset,
        )
        try:
            content = reader().read(source)
        except BadImageError:
            continue
        if packing == "zip" and member.name in members:
            assert content == members[member.name]
