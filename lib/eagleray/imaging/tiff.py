"""Reads the directory of a TIFF (TIFF 6.0, section 2): its size and pixel layout.

Decoders use the first picture of a TIFF, and misread some layouts. Files that they would decode
wrongly are rejected here, or described so that `decode` can handle them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from eagleray.core.errors import BadImageError, Reason
from eagleray.imaging.header import MAX_BLOCKS, MAX_TILE_PIXELS, Header, damaged, unsupported

__all__ = [
    "TiffLayout",
    "describe_tiff",
    "exif_orientation",
    "read_tiff",
    "tiff_layout",
    "with_black_as_zero",
]

MAX_TAGS = 2**12  # in a directory
MAX_NUMBERS = 2**18  # in one tag; a 16-bit palette has fewer
MAX_DIRECTORIES = 16  # that are searched for a camera raw picture

_SUBFILE_KIND, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANES, _TILE_WIDTH, _TILE_HEIGHT = 274, 277, 284, 322, 323
_SUB_DIRECTORIES, _EXTRA_SAMPLES, _SAMPLE_KIND, _DNG_VERSION = 330, 338, 339, 50706
_OFFSET_TAGS = {273, 279, 324, 325}  # of strips and tiles
_SIZE_TAGS = {_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT}

_SHORT, _LONG = 3, 4
_NUMBERS = {_SHORT: "H", _LONG: "I", 13: "I"}  # 13 is the offset of a directory
_BYTES = {1, 2, 6, 7}  # types whose values are not expanded

_REDUCED = 1  # a bit of the kind of subfile
_COLOR_FILTERS, _LINEAR_RAW = 32803, 34892
_RAW = {_COLOR_FILTERS, _LINEAR_RAW}
_SIGNED = 2
_PLANAR = 2
_ALPHA = {1, 2}
_READ_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946, 34925, 50000}

_COLORS = {
    0: "gray",
    1: "gray",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIE Lab",
    9: "ICC Lab",
    10: "ITU Lab",
    32844: "LogL",
    32845: "LogLuv",
}
_SAMPLE_KINDS = {1: "unsigned", _SIGNED: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_COMPRESSION_NAMES = {
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((34676, 34677), "SGI Log"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    34661: "JBIG",
    34713: "Nikon NEF",
    34887: "LERC",
    34892: "lossy JPEG",
    50001: "WebP",
}


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """Pixel layout of a TIFF's first picture.

    Attributes:
        bits: Bits per sample.
        white_is_zero: Whether the lowest value is white.
        in_planes: Whether the channels are stored in separate planes.
        compressed: Whether the pixels are compressed.
    """

    bits: int
    white_is_zero: bool
    in_planes: bool
    compressed: bool


@dataclass(frozen=True, slots=True)
class _Directory:
    """Numeric tags of a directory.

    Attributes:
        numbers: The first values of each tag.
        entries: Offset of each tag's entry in the file.
        following: Offset of the next directory; 0 after the last.
    """

    numbers: dict[int, tuple[int, ...]]
    entries: dict[int, int]
    following: int

    def first(self, tag: int, default: int) -> int:
        return self.numbers.get(tag, (default,))[0]

    @property
    def samples(self) -> int:
        default = 3 if self.first(_COMPRESSION, 1) == 7 and self.color in (2, 6) else 1
        return self.first(_SAMPLES, default)

    @property
    def color(self) -> int:
        return self.first(_PHOTOMETRIC, 0)


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 1 if it has no valid one."""
    try:
        value = _read_directory(exif).first(_ORIENTATION, 1)
    except (struct.error, IndexError, BadImageError):
        return 1
    return value if 1 <= value <= 8 else 1


def read_tiff(data: bytes) -> Header:
    """Read the header of a TIFF.

    Raises:
        BadImageError: If its size is invalid, or its layout is not supported.
        struct.error: If it ends inside its header.
    """
    first = _read_directory(data)
    width, height = first.first(_WIDTH, 0), first.first(_HEIGHT, 0)
    tile_width, tile_height = first.first(_TILE_WIDTH, 0), first.first(_TILE_HEIGHT, 0)
    if tile_width * tile_height > max(4 * width * height, MAX_TILE_PIXELS):
        # A decoder allocates a whole tile, even for a small image.
        raise BadImageError(
            Reason.TOO_MANY_PIXELS,
            f"a tile of {tile_width:,} x {tile_height:,} pixels is far larger than the image of "
            f"{width:,} x {height:,}",
        )
    _check_first_picture(data, first)
    _check_layout(first)
    return Header("tiff", width, height)


def tiff_layout(data: bytes) -> TiffLayout:
    """Return the pixel layout of a TIFF that `read_tiff` accepted."""
    first = _read_directory(data)
    return TiffLayout(
        bits=first.first(_BITS, 1),
        white_is_zero=first.color == 0,
        in_planes=first.first(_PLANES, 1) == _PLANAR and first.samples > 1,
        compressed=first.first(_COMPRESSION, 1) != 1,
    )


def describe_tiff(data: bytes) -> str:
    """Describe the pixels of a TIFF that `read_tiff` accepted, for messages."""
    return _describe(_read_directory(data))


def with_black_as_zero(data: bytes) -> bytes:
    """Return a TIFF whose first picture is marked as black-is-zero, so that it decodes inverted."""
    entry = _read_directory(data).entries.get(_PHOTOMETRIC)
    if entry is None:
        return data
    order = "<" if data[:2] == b"II" else ">"
    value = struct.pack(f"{order}HIHH", _SHORT, 1, 1, 0)
    return data[: entry + 2] + value + data[entry + 12 :]


# --- directories ------------------------------------------------------------------------------


def _read_directory(data: bytes, offset: int | None = None) -> _Directory:
    """Read the SHORT and LONG tags of a directory, by default of the first one.

    Of duplicate tags the larger value counts, as decoders differ in which one they use.
    """
    order = "<" if data[:2] == b"II" else ">"
    if offset is None:
        (offset,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, offset)
    if count > MAX_TAGS:
        raise damaged(f"the TIFF has {count:,} tags")
    numbers: dict[int, tuple[int, ...]] = {}
    entries: dict[int, int] = {}
    for index in range(count):
        entry = offset + 2 + 12 * index
        tag, kind, num_values = struct.unpack_from(f"{order}HHI", data, entry)
        entries[tag] = entry
        if num_values > (MAX_BLOCKS if tag in _OFFSET_TAGS else MAX_NUMBERS) and kind not in _BYTES:
            raise damaged(f"the TIFF's tag {tag} has {num_values:,} values")
        if kind in _NUMBERS:
            values = _read_numbers(data, order, entry)
            numbers[tag] = max(values, numbers.get(tag, values))
        elif tag in _SIZE_TAGS:
            raise damaged(f"the TIFF states a size as type {kind}")
    # Some writers omit this after the last directory.
    after = data[offset + 2 + 12 * count : offset + 6 + 12 * count]
    following = struct.unpack(f"{order}I", after)[0] if len(after) == 4 else 0
    return _Directory(numbers, entries, following)


def _read_numbers(data: bytes, order: str, entry: int) -> tuple[int, ...]:
    """Return up to eight values of a tag, at least one."""
    kind, num_values = struct.unpack_from(f"{order}HI", data, entry + 2)
    letter, size = _NUMBERS[kind], 2 if kind == _SHORT else 4
    start = entry + 8
    if num_values * size > 4:
        (start,) = struct.unpack_from(f"{order}I", data, start)
    try:
        return struct.unpack_from(f"{order}{min(max(num_values, 1), 8)}{letter}", data, start)
    except struct.error:
        if start == entry + 8:
            raise
        return (0,)  # missing values are left for decoders to reject


def _other_directories(data: bytes, first: _Directory) -> Iterator[_Directory]:
    """Yield some of the other directories, nested in the first one or after it."""
    offsets = [*first.numbers.get(_SUB_DIRECTORIES, ()), first.following]
    for _ in range(MAX_DIRECTORIES):
        if not offsets:
            return
        offset = offsets.pop(0)
        if offset == 0:
            continue
        try:
            directory = _read_directory(data, offset)
        except (struct.error, BadImageError):
            continue
        yield directory
        offsets.append(directory.following)


# --- checks -----------------------------------------------------------------------------------


def _check_first_picture(data: bytes, first: _Directory) -> None:
    """Reject a file whose first picture is not the image: a raw file, or a preview."""
    others = list(_other_directories(data, first))
    is_raw = data[8:10] == b"CR" or any(one.color in _RAW for one in (first, *others))
    if is_raw or _DNG_VERSION in first.entries:
        raise unsupported(
            "a camera raw file (DNG, NEF, ARW, CR2 and the like) is not read; "
            "export it as JPEG or TIFF"
        )
    if first.first(_SUBFILE_KIND, 0) & _REDUCED and others:
        raise unsupported(
            "the TIFF's first picture is a reduced copy of another one in the file, as in a "
            "camera raw file; export it as JPEG or as a TIFF of one picture"
        )


def _check_layout(first: _Directory) -> None:
    """Reject layouts that decoders would misread."""
    compression = first.first(_COMPRESSION, 1)
    if compression not in _READ_COMPRESSIONS:
        name = _COMPRESSION_NAMES.get(compression, "an unknown method")
        raise unsupported(f"a TIFF compressed by {name} (number {compression}) is not read")
    extra = first.numbers.get(_EXTRA_SAMPLES, ())
    is_gray_with_extra = first.color in (0, 1) and first.samples > 1
    has_alpha = first.samples == 2 and len(extra) == 1 and extra[0] in _ALPHA
    is_signed_byte = first.first(_SAMPLE_KIND, 1) == _SIGNED and first.first(_BITS, 1) <= 8
    if (is_gray_with_extra and not has_alpha) or is_signed_byte or first.color in (8, 9, 10):
        raise unsupported(f"a TIFF of {_describe(first)} is not read")


def _describe(first: _Directory) -> str:
    bands = f"{first.samples:,} channel{'s' if first.samples != 1 else ''}"
    kind = _SAMPLE_KINDS.get(first.first(_SAMPLE_KIND, 1), "unknown")
    color = _COLORS.get(first.color, f"unknown colours ({first.color})")
    apart = ", stored apart" if first.first(_PLANES, 1) == _PLANAR else ""
    return f"{bands} of {first.first(_BITS, 1)}-bit {kind} samples ({color}{apart})"
