"""Read a TIFF's directory (TIFF 6.0, section 2): its size, how its pixels lie, and what is refused.

Decoders take the first picture of a TIFF for the image, and some layouts for others. What they
would read wrongly is refused here, or described so that `decode` can do it right.
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
MAX_NUMBERS = 2**18  # in one tag; the colours of a palette of 16 bits are fewer
MAX_DIRECTORIES = 16  # that are searched for a camera's raw picture

_SUBFILE_KIND, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANES, _TILE_WIDTH, _TILE_HEIGHT = 274, 277, 284, 322, 323
_SUB_DIRECTORIES, _EXTRA_SAMPLES, _SAMPLE_KIND, _DNG_VERSION = 330, 338, 339, 50706
_PLACES = {273, 279, 324, 325}  # of strips and tiles
_SIZES = {_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT}

_SHORT, _LONG = 3, 4
_NUMBERS = {_SHORT: "H", _LONG: "I", 13: "I"}  # 13 is a place of a directory
_TEXTS = {1, 2, 6, 7}  # types whose values stay bytes, however many there are

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
    """How the pixels of a TIFF's first picture lie.

    Attributes:
        bits: Of a sample.
        white_is_zero: Whether the lowest value is white.
        in_planes: Whether each channel is stored apart from the others.
        compressed: Whether the pixels are.
    """

    bits: int
    white_is_zero: bool
    in_planes: bool
    compressed: bool


@dataclass(frozen=True, slots=True)
class _Directory:
    """The numbers of a directory's tags.

    Attributes:
        numbers: The first few values of each tag.
        places: Where in the file the entry of each tag begins.
        following: Where the next directory is; 0 after the last.
    """

    numbers: dict[int, tuple[int, ...]]
    places: dict[int, int]
    following: int

    def first(self, tag: int, default: int) -> int:
        return self.numbers.get(tag, (default,))[0]

    @property
    def samples(self) -> int:
        usual = 3 if self.first(_COMPRESSION, 1) == 7 and self.color in (2, 6) else 1
        return self.first(_SAMPLES, usual)

    @property
    def color(self) -> int:
        return self.first(_PHOTOMETRIC, 0)


def exif_orientation(exif: bytes) -> int:
    """Return the orientation of an EXIF block, 1 where it says nothing valid."""
    try:
        value = _read_directory(exif).first(_ORIENTATION, 1)
    except (struct.error, IndexError, BadImageError):
        return 1
    return value if 1 <= value <= 8 else 1


def read_tiff(data: bytes) -> Header:
    """Read the header of a TIFF.

    Raises:
        BadImageError: Its size makes no sense, or its layout is not read.
        struct.error: It ends inside its header.
    """
    first = _read_directory(data)
    width, height = first.first(_WIDTH, 0), first.first(_HEIGHT, 0)
    tile_width, tile_height = first.first(_TILE_WIDTH, 0), first.first(_TILE_HEIGHT, 0)
    if tile_width * tile_height > max(4 * width * height, MAX_TILE_PIXELS):
        # A decoder allocates a whole tile, whatever the image needs of it.
        raise BadImageError(
            Reason.TOO_MANY_PIXELS,
            f"a tile of {tile_width:,} x {tile_height:,} pixels dwarfs the image of "
            f"{width:,} x {height:,}",
        )
    _refuse_other_pictures(data, first)
    _refuse_layouts(first)
    return Header("tiff", width, height)


def tiff_layout(data: bytes) -> TiffLayout:
    """Return how the pixels of a TIFF lie that `read_tiff` has read."""
    first = _read_directory(data)
    return TiffLayout(
        bits=first.first(_BITS, 1),
        white_is_zero=first.color == 0,
        in_planes=first.first(_PLANES, 1) == _PLANAR and first.samples > 1,
        compressed=first.first(_COMPRESSION, 1) != 1,
    )


def describe_tiff(data: bytes) -> str:
    """Describe the pixels of a TIFF that `read_tiff` has read, for messages."""
    return _describe(_read_directory(data))


def with_black_as_zero(data: bytes) -> bytes:
    """Return a TIFF whose first picture says that black is zero: its negative."""
    place = _read_directory(data).places.get(_PHOTOMETRIC)
    if place is None:
        return data
    order = "<" if data[:2] == b"II" else ">"
    value = struct.pack(f"{order}HIHH", _SHORT, 1, 1, 0)
    return data[: place + 2] + value + data[place + 12 :]


# --- directories ------------------------------------------------------------------------------


def _read_directory(data: bytes, offset: int | None = None) -> _Directory:
    """Read the SHORT and LONG tags of a directory, by default of the first one.

    Of a tag that stands twice the larger value counts: decoders differ in which one they take.
    """
    order = "<" if data[:2] == b"II" else ">"
    if offset is None:
        (offset,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, offset)
    if count > MAX_TAGS:
        raise damaged(f"the TIFF has {count:,} tags")
    numbers: dict[int, tuple[int, ...]] = {}
    places: dict[int, int] = {}
    for index in range(count):
        entry = offset + 2 + 12 * index
        tag, kind, num_values = struct.unpack_from(f"{order}HHI", data, entry)
        places[tag] = entry
        if num_values > (MAX_BLOCKS if tag in _PLACES else MAX_NUMBERS) and kind not in _TEXTS:
            raise damaged(f"the TIFF's tag {tag} has {num_values:,} values")
        if kind in _NUMBERS:
            values = _read_numbers(data, order, entry)
            numbers[tag] = max(values, numbers.get(tag, values))
        elif tag in _SIZES:
            raise damaged(f"the TIFF states a size as type {kind}")
    # Of the last directory some writers leave this out.
    after = data[offset + 2 + 12 * count : offset + 6 + 12 * count]
    following = struct.unpack(f"{order}I", after)[0] if len(after) == 4 else 0
    return _Directory(numbers, places, following)


def _read_numbers(data: bytes, order: str, entry: int) -> tuple[int, ...]:
    """Return up to eight values of a tag, of which the first is always there."""
    kind, num_values = struct.unpack_from(f"{order}HI", data, entry + 2)
    letter, size = _NUMBERS[kind], 2 if kind == _SHORT else 4
    place = entry + 8
    if num_values * size > 4:
        (place,) = struct.unpack_from(f"{order}I", data, place)
    try:
        return struct.unpack_from(f"{order}{min(max(num_values, 1), 8)}{letter}", data, place)
    except struct.error:
        if place == entry + 8:
            raise
        return (0,)  # values that are not there are for decoders to refuse


def _other_directories(data: bytes, first: _Directory) -> Iterator[_Directory]:
    """Yield some of the other directories: those inside the first one, and those after it."""
    waiting = [*first.numbers.get(_SUB_DIRECTORIES, ()), first.following]
    for _ in range(MAX_DIRECTORIES):
        if not waiting:
            return
        place = waiting.pop(0)
        if place == 0:
            continue
        try:
            directory = _read_directory(data, place)
        except (struct.error, BadImageError):
            continue
        yield directory
        waiting.append(directory.following)


# --- what is refused --------------------------------------------------------------------------


def _refuse_other_pictures(data: bytes, first: _Directory) -> None:
    """Refuse a file whose first picture is not the photo: a raw file, or one with a preview."""
    others = list(_other_directories(data, first))
    is_raw = data[8:10] == b"CR" or any(one.color in _RAW for one in (first, *others))
    if is_raw or _DNG_VERSION in first.places:
        raise unsupported(
            "a camera's raw file (DNG, NEF, ARW, CR2 and the like) is not read; "
            "export it as JPEG or TIFF"
        )
    if first.first(_SUBFILE_KIND, 0) & _REDUCED and others:
        raise unsupported(
            "the TIFF's first picture is a reduced copy of another one in the file, as in a "
            "camera's raw file; export it as JPEG or as a TIFF of one picture"
        )


def _refuse_layouts(first: _Directory) -> None:
    """Refuse what decoders would take for something else."""
    compression = first.first(_COMPRESSION, 1)
    if compression not in _READ_COMPRESSIONS:
        name = _COMPRESSION_NAMES.get(compression, "an unknown method")
        raise unsupported(f"a TIFF compressed by {name} (number {compression}) is not read")
    extra = first.numbers.get(_EXTRA_SAMPLES, ())
    is_gray_with_more = first.color in (0, 1) and first.samples > 1
    has_alpha = first.samples == 2 and len(extra) == 1 and extra[0] in _ALPHA
    is_signed_byte = first.first(_SAMPLE_KIND, 1) == _SIGNED and first.first(_BITS, 1) <= 8
    if (is_gray_with_more and not has_alpha) or is_signed_byte or first.color in (8, 9, 10):
        raise unsupported(f"a TIFF of {_describe(first)} is not read")


def _describe(first: _Directory) -> str:
    bands = f"{first.samples:,} channel{'s' if first.samples != 1 else ''}"
    kind = _SAMPLE_KINDS.get(first.first(_SAMPLE_KIND, 1), "unknown")
    color = _COLORS.get(first.color, f"unknown colours ({first.color})")
    apart = ", stored apart" if first.first(_PLANES, 1) == _PLANAR else ""
    return f"{bands} of {first.first(_BITS, 1)}-bit {kind} samples ({color}{apart})"
