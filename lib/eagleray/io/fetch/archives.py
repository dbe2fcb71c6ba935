"""Lists the members of tar and zip archives, and reads single members."""

from __future__ import annotations

import contextlib
import posixpath
import struct
import tarfile
import zipfile
import zlib
from typing import BinaryIO, NamedTuple

from eagleray.core.errors import BadImageError, InputError, Reason
from eagleray.core.file_names import escape_file_name
from eagleray.io import storage
from eagleray.io.fetch.source import Packing
from eagleray.io.file_kinds import NUM_SNIFFED_BYTES, describe_file_kind, is_text

__all__ = ["Member", "list_members", "read_tar_member", "read_zip_member"]

_TAR_BLOCK = 512
_TAR_SCAN_BYTES = 2**20
_TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, EOFError)
_ZIP_ERRORS = (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error)

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_MAGIC = b"PK\x03\x04"
_DESCRIPTOR_MAGIC = b"PK\x07\x08"
_DESCRIPTOR_BYTES = 24  # at most: magic, CRC and two sizes of eight bytes
_TYPICAL_NAME_BYTES = 512  # name and extra field; one request then reads most members whole
_ENCRYPTED, _HAS_DESCRIPTOR = 0x1, 0x8
_STORED, _DEFLATED = 0, 8
_NAME_IS_UTF8 = 0x800


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: Path in the archive, unchanged.
        offset: Offset of its data (tar) or of its local header (zip) in the archive; None for a
            dangling link or a sparse file.
        size: Uncompressed size in bytes.
    """

    name: str
    offset: int | None
    size: int | None


def list_members(container: str, packing: Packing) -> list[Member]:
    """List the files in an archive, in its order, without folders and devices.

    Memory grows with the number of members, by about a quarter of a kilobyte each.

    Raises:
        FileNotFoundError: If there is no such archive.
        OSError: If it cannot be read from the storage.
        InputError: If it is damaged, or not an archive of this kind.
    """
    with storage.open_seekable(container) as file:
        try:
            return _list_tar(file) if packing == "tar" else _list_zip(file)
        except (*_TAR_ERRORS, *_ZIP_ERRORS) as error:
            _check_kind(file, container, packing)
            problem = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"{container} is not a whole {packing} archive ({problem}); copy it again, or "
                "leave it out."
            ) from error


def _check_kind(file: BinaryIO, container: str, packing: Packing) -> None:
    """Check that a file is of the kind that its name says.

    Raises:
        InputError: If it is of another known kind.
    """
    file.seek(0)
    start = file.read(NUM_SNIFFED_BYTES)
    kind = describe_file_kind(start) or ("a text" if is_text(start) else None)
    if kind is None or kind.startswith(f"a {packing} "):
        return
    advice = "decompress it" if kind.startswith("compressed") else "rename it"
    raise InputError(
        f"{container} is {kind} in spite of its name, so that no image in it is found; {advice}, "
        "or leave it out."
    )


def _list_tar(file: BinaryIO) -> list[Member]:
    """List a tar, and further tars that were concatenated to it."""
    members: list[Member] = []
    start: int | None = 0
    while start is not None:
        found, end = _list_one_tar(file, start)
        members += found
        start = _start_of_next_tar(file, end)
    return members


def _list_one_tar(file: BinaryIO, start: int) -> tuple[list[Member], int]:
    """Return the members of the tar that starts at an offset, and the offset of its end."""
    members: list[Member] = []
    links: dict[int, str] = {}
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
        while (entry := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # which would keep every entry
            if entry.islnk() or entry.issym():
                links[len(members)] = _link_target(entry)
                members.append(Member(escape_file_name(entry.name), None, None))
            elif entry.issparse():
                members.append(Member(escape_file_name(entry.name), None, entry.size))
            elif entry.isreg():
                members.append(Member(escape_file_name(entry.name), entry.offset_data, entry.size))
        end: int = archive.offset
    return _resolve_links(members, links), end


def _start_of_next_tar(file: BinaryIO, end: int) -> int | None:
    """Return the offset of the next concatenated tar; None if only zeros follow.

    Args:
        file: The archive.
        end: Offset at which reading stopped: `tarfile` treats any garbage as an end.

    Raises:
        ValueError: If something else than zeros or a tar follows.
    """
    position = end
    file.seek(end)
    while block := file.read(_TAR_BLOCK if position == end else _TAR_SCAN_BYTES):
        if block.strip(b"\0"):
            position += (len(block) - len(block.lstrip(b"\0"))) // _TAR_BLOCK * _TAR_BLOCK
            file.seek(position)
            if position == end or describe_file_kind(file.read(_TAR_BLOCK)) != "a tar archive":
                raise ValueError(f"damaged at byte {position:,}")
            return position
        position += len(block)
    return None


def _link_target(entry: tarfile.TarInfo) -> str:
    if entry.issym():
        folder = posixpath.dirname(entry.name)
        return escape_file_name(posixpath.normpath(posixpath.join(folder, entry.linkname)))
    return escape_file_name(entry.linkname)


def _resolve_links(members: list[Member], links: dict[int, str]) -> list[Member]:
    if not links:
        return members
    data = {posixpath.normpath(member.name): member for member in members if member.offset}
    for index, target in links.items():
        found = data.get(posixpath.normpath(target))
        if found is not None:
            members[index] = found._replace(name=members[index].name)
    return members


def _list_zip(file: BinaryIO) -> list[Member]:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    file.seek(0)
    starts_with_member = file.read(len(_LOCAL_MAGIC)) == _LOCAL_MAGIC
    if starts_with_member and min(entry.header_offset for entry in entries) > 0:
        raise ValueError(
            "members at its start are not in its directory, as in two concatenated zips"
        )
    return [
        Member(_zip_name(entry), entry.header_offset, entry.file_size)
        for entry in entries
        if not entry.is_dir()
    ]


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """Return a member's name, which some programs write in UTF-8 without the flag for it."""
    if not entry.flag_bits & _NAME_IS_UTF8:
        with contextlib.suppress(UnicodeError):
            return escape_file_name(entry.filename.encode("cp437").decode())
    return escape_file_name(entry.filename)


def read_tar_member(container: str, offset: int, size: int) -> bytes:
    """Read the bytes of a tar member.

    Raises:
        BadImageError: If the archive ends early (`unreadable`).
        OSError: If it cannot be read from the storage.
    """
    data = storage.read_range(container, offset, size) if size else b""
    if len(data) != size:
        raise BadImageError(Reason.UNREADABLE, "the archive ends before this member does")
    return data


def read_zip_member(container: str, offset: int, size: int) -> bytes:
    """Read and decompress a stored or deflated zip member; never more than `size` bytes.

    Args:
        container: Location of the archive.
        offset: Offset of the member's local header.
        size: Uncompressed size of the member according to the archive's directory.

    Raises:
        BadImageError: If the archive is damaged or not supported (`unreadable`).
        OSError: If it cannot be read from the storage.
    """
    if offset < 0:
        raise BadImageError(Reason.UNREADABLE, "the archive's directory is damaged")
    first = _LOCAL_HEADER.size + _TYPICAL_NAME_BYTES + _max_packed_bytes(size)
    data = storage.read_range(container, offset, first)
    header = _parse_local_header(data)
    needed = header.start + min(header.packed_size or first, 2 * first) + _DESCRIPTOR_BYTES
    if len(data) == first < needed:  # a long name, or a poor compressor
        data += storage.read_range(container, offset + first, needed - first)
    body = memoryview(data)[header.start :]
    content, rest = _decompress(body, header.method, size)
    crc = header.crc if header.crc is not None else _descriptor_crc(rest)
    if zlib.crc32(content) != crc:
        raise BadImageError(Reason.UNREADABLE, "its checksum in the archive does not match")
    return content


class _LocalHeader(NamedTuple):
    """The local header of a zip member.

    Attributes:
        start: Offset of the data from the start of the header.
        method: Compression method.
        crc: CRC-32 of the content; None if it follows the data.
        packed_size: Compressed size in bytes; None if the header does not contain it.
    """

    start: int
    method: int
    crc: int | None
    packed_size: int | None


def _parse_local_header(data: bytes) -> _LocalHeader:
    if len(data) < _LOCAL_HEADER.size or not data.startswith(_LOCAL_MAGIC):
        raise BadImageError(
            Reason.UNREADABLE, "the archive is damaged, or has changed since it was listed"
        )
    _, _, flags, method, _, _, crc, packed, _, name, extra = _LOCAL_HEADER.unpack_from(data)
    if flags & _ENCRYPTED:
        raise BadImageError(Reason.UNREADABLE, "it is encrypted in the archive")
    if method not in (_STORED, _DEFLATED):
        raise BadImageError(
            Reason.UNREADABLE,
            f"the archive compresses it with method {method}; only stored and deflated are read",
        )
    start = _LOCAL_HEADER.size + name + extra
    if flags & _HAS_DESCRIPTOR:
        return _LocalHeader(start, method, None, None)
    return _LocalHeader(start, method, crc, packed if packed < 0xFFFFFFFF else None)


def _max_packed_bytes(size: int) -> int:
    """Return an upper bound of the compressed size of `size` bytes by zlib, with a descriptor."""
    return size + (size >> 12) + (size >> 14) + (size >> 25) + 64 + _DESCRIPTOR_BYTES


def _decompress(body: memoryview, method: int, size: int) -> tuple[bytes, bytes]:
    """Return the content of a member and the first bytes that follow it."""
    if method == _STORED:
        if len(body) < size:
            raise BadImageError(Reason.UNREADABLE, "the archive ends before this member does")
        return bytes(body[:size]), bytes(body[size : size + _DESCRIPTOR_BYTES])
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(body, size + 1)
    except zlib.error as error:
        raise BadImageError(Reason.UNREADABLE, "its data in the archive are damaged") from error
    if len(content) > size:
        raise BadImageError(Reason.UNREADABLE, "it decompresses to more than the archive says")
    if not inflater.eof or len(content) < size:
        raise BadImageError(Reason.UNREADABLE, "the archive ends before this member does")
    return content, inflater.unused_data[:_DESCRIPTOR_BYTES]


def _descriptor_crc(descriptor: bytes) -> int:
    """Return the checksum in a data descriptor, whose magic is optional."""
    start = len(_DESCRIPTOR_MAGIC) * descriptor.startswith(_DESCRIPTOR_MAGIC)
    return int.from_bytes(descriptor[start : start + 4], "little")
