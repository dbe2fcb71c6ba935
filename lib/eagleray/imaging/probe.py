"""Read an image's format, size and orientation from its first bytes, allocating nothing.

An encoded image is hostile until decoded. Decoders allocate by the size that a header claims, some
of them as soon as they open a file, so the header is read here first, in plain Python, and judged
against the contract's limits.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from eagleray.errors import BadImageError, Reason

__all__ = ["FORMATS", "Header", "format_of", "probe"]

EXIF_ORIENTATION_TAG = 0x0112
TIFF_WIDTH_TAG, TIFF_HEIGHT_TAG = 0x0100, 0x0101
TIFF_TILE_WIDTH_TAG, TIFF_TILE_HEIGHT_TAG = 0x0142, 0x0143
TIFF_SHORT, TIFF_LONG = 3, 4
TIFF_TEXTS = {1, 2, 6, 7}  # types whose values stay bytes, however many there are
TIFF_PLACES = {273, 279, 324, 325}  # of strips and tiles
TIFF_SIZE_TAGS = {TIFF_WIDTH_TAG, TIFF_HEIGHT_TAG, TIFF_TILE_WIDTH_TAG, TIFF_TILE_HEIGHT_TAG}

MOST_TILE_PIXELS = 2**20  # a tile may exceed a small image, but not by much
MOST_SKIPPED_BYTES = 2**16  # stray and fill bytes in a header
MOST_BLOCKS = 2**16  # segments, sub-blocks, chunks, strips and tiles, each of which costs time
MOST_TAGS = 2**12  # in a directory of a TIFF
MOST_NUMBERS = 2**18  # in one tag; the colours of a palette of 16 bits are fewer
MOST_RLE_PIXELS = 2**22  # Pillow unpacks run lengths of BMP in plain Python


@dataclass(frozen=True, slots=True)
class Header:
    """What an encoded image claims about itself.

    Attributes:
        format: One of `FORMATS`.
        width: Stored pixels in a row, before orientation.
        height: Stored rows, before orientation.
        components: Colour components of a JPEG; 0 for other formats, where Pillow knows.
        orientation: EXIF orientation 1 to 8 of a JPEG; 1 for other formats, where Pillow knows.
        scans: How often a decoder goes over the pixels; 1 for all but JPEG.
    """

    format: str
    width: int
    height: int
    components: int = 0
    orientation: int = 1
    scans: int = field(default=1, compare=False)


def probe(data: bytes) -> Header:
    """Read the header of an encoded image.

    Raises:
        BadImageError: `truncated`, `not_an_image`, `unsupported_format` or `unreadable`.
    """
    if not data:
        raise BadImageError(Reason.TRUNCATED, "the file is empty (0 bytes)")
    read_header = next((read for is_format, read in _READERS.values() if is_format(data)), None)
    if read_header is None:
        raise _unknown_format(data)
    try:
        header = read_header(data)
    except (struct.error, IndexError) as error:
        raise BadImageError(Reason.TRUNCATED, "the file ends inside its header") from error
    if header.width < 1 or header.height < 1:
        raise BadImageError(
            Reason.UNREADABLE, f"the header claims {header.width} x {header.height} pixels"
        )
    return header


def _unknown_format(data: bytes) -> BadImageError:
    for is_format, name in _KNOWN_BUT_REFUSED:
        if is_format(data):
            return BadImageError(
                Reason.UNSUPPORTED_FORMAT,
                f"{name} is not among the formats that are read: {', '.join(FORMATS)}",
            )
    shown = data[:8].hex(" ")
    return BadImageError(Reason.NOT_AN_IMAGE, f"no image format starts with the bytes {shown}")


# --- one reader per format --------------------------------------------------------------------


def _read_jpeg(data: bytes) -> Header:
    """Walk the marker segments up to the frame header (ITU-T T.81, annex B)."""
    orientation = 1
    for marker, position in _jpeg_segments(data):
        if marker in (0xD9, 0xDA):
            raise BadImageError(Reason.UNREADABLE, "the JPEG has no frame header before its data")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from(">HHB", data, position + 3)
            scans = _num_scans(data, position, marker, components)
            return Header("jpeg", width, height, components, orientation, scans)
        if marker == 0xE1 and data[position + 2 : position + 8] == b"Exif\0\0":
            (length,) = struct.unpack_from(">H", data, position)
            orientation = _exif_orientation(data[position + 8 : position + length])
    raise BadImageError(Reason.UNREADABLE, "the JPEG has too many segments before its frame")


def _jpeg_segments(data: bytes, position: int = 2) -> Iterator[tuple[int, int]]:
    """Yield each marker, and where its segment begins, with its length."""
    num_skipped = 0
    for _ in range(MOST_BLOCKS):
        while data[position] != 0xFF or data[position + 1] in (0x00, 0xFF):
            position += 1  # decoders skip stray and fill bytes between segments, so do we
            num_skipped += 1
            if num_skipped > MOST_SKIPPED_BYTES:
                raise BadImageError(Reason.UNREADABLE, "the JPEG header is full of stray bytes")
        marker = data[position + 1]
        position += 2
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers that stand alone
            continue
        yield marker, position
        (length,) = struct.unpack_from(">H", data, position)
        position += max(length, 2)


def _num_scans(data: bytes, frame: int, marker: int, components: int) -> int:
    """Count the scans from a frame header on; one with all colours of such a frame is the last."""
    (length,) = struct.unpack_from(">H", data, frame)
    if marker in (0xC0, 0xC1):
        with contextlib.suppress(struct.error, IndexError, BadImageError):
            for kind, position in _jpeg_segments(data, frame + max(length, 2)):
                if kind == 0xDA and data[position + 2] >= components:
                    return 1
                if kind == 0xDA:
                    break
    return data.count(b"\xff\xda", frame)


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation of an EXIF block, 1 where it says nothing valid."""
    try:
        value = _tiff_tags(exif).get(EXIF_ORIENTATION_TAG, 1)
    except (struct.error, IndexError, BadImageError):
        return 1
    return value if 1 <= value <= 8 else 1


def _tiff_tags(data: bytes) -> dict[int, int]:
    """Return the SHORT and LONG tags of the first directory of a TIFF (TIFF 6.0, section 2).

    Of a tag that stands twice the larger value counts: decoders differ in which one they take.
    """
    order = "<" if data[:2] == b"II" else ">"
    (offset,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, offset)
    tags: dict[int, int] = {}
    if count > MOST_TAGS:
        raise BadImageError(Reason.UNREADABLE, f"the TIFF has {count:,} tags")
    for index in range(count):
        entry = offset + 2 + 12 * index
        tag, kind, num_values = struct.unpack_from(f"{order}HHI", data, entry)
        most = MOST_BLOCKS if tag in TIFF_PLACES else MOST_NUMBERS
        if num_values > most and kind not in TIFF_TEXTS:
            raise BadImageError(
                Reason.UNREADABLE, f"the TIFF's tag {tag} has {num_values:,} values"
            )
        if kind in (TIFF_SHORT, TIFF_LONG):
            form = "H" if kind == TIFF_SHORT else "I"
            (value,) = struct.unpack_from(f"{order}{form}", data, entry + 8)
            tags[tag] = max(value, tags.get(tag, 0))
        elif tag in TIFF_SIZE_TAGS:
            raise BadImageError(Reason.UNREADABLE, f"the TIFF states a size as type {kind}")
    return tags


def _read_tiff(data: bytes) -> Header:
    tags = _tiff_tags(data)
    width, height = tags.get(TIFF_WIDTH_TAG, 0), tags.get(TIFF_HEIGHT_TAG, 0)
    tile_width, tile_height = tags.get(TIFF_TILE_WIDTH_TAG, 0), tags.get(TIFF_TILE_HEIGHT_TAG, 0)
    if tile_width * tile_height > max(4 * width * height, MOST_TILE_PIXELS):
        # A decoder allocates a whole tile, whatever the image needs of it.
        raise BadImageError(
            Reason.TOO_MANY_PIXELS,
            f"a tile of {tile_width:,} x {tile_height:,} pixels dwarfs the image of "
            f"{width:,} x {height:,}",
        )
    return Header("tiff", width, height)


def _read_png(data: bytes) -> Header:
    _require_length(data, 24)
    if data[12:16] != b"IHDR":
        raise BadImageError(Reason.UNREADABLE, "the PNG does not start with its header chunk")
    width, height = struct.unpack_from(">II", data, 16)
    _require_few_chunks(data)
    return Header("png", width, height)


def _require_few_chunks(data: bytes) -> None:
    position = 8
    for _ in range(MOST_BLOCKS):
        if position + 8 > len(data):
            return
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    raise BadImageError(Reason.UNREADABLE, f"the PNG has more than {MOST_BLOCKS:,} chunks")


def _read_gif(data: bytes) -> Header:
    """Return the larger of the screen and the first frame: a frame may exceed its screen."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    num_blocks = 0
    while data[position] not in (0x2C, 0x3B):  # neither a frame nor the end
        if data[position] == 0x21:  # an extension: its label, then blocks up to an empty one
            position += 2
            while data[position]:
                position += data[position] + 1
                num_blocks += 1
        position += 1
        num_blocks += 1
        if num_blocks > MOST_BLOCKS:
            raise BadImageError(Reason.UNREADABLE, "the GIF has too many blocks before its frame")
    if data[position] == 0x2C:
        left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
        width, height = max(width, left + frame_width), max(height, top + frame_height)
    return Header("gif", width, height)


def _read_bmp(data: bytes) -> Header:
    (header_size,) = struct.unpack_from("<I", data, 14)
    if header_size == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)  # a negative height means top-down
        _, compression = struct.unpack_from("<HI", data, 28)
        if compression in (1, 2) and width * abs(height) > MOST_RLE_PIXELS:
            raise BadImageError(
                Reason.TOO_MANY_PIXELS,
                f"the BMP claims {width:,} x {abs(height):,} pixels in run lengths, of which "
                f"{MOST_RLE_PIXELS:,} are read",
            )
    return Header("bmp", width, abs(height))


def _read_webp(data: bytes) -> Header:
    """Read one of the three first chunks of WebP (RFC 9649, section 2)."""
    _require_length(data, 30)
    claimed = int.from_bytes(data[4:8], "little") + 8
    if claimed > len(data):
        raise BadImageError(
            Reason.TRUNCATED, f"the webp data end early ({len(data):,} of {claimed:,} bytes)"
        )
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif chunk == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise BadImageError(Reason.UNREADABLE, "the WebP has no image chunk where one must be")
    return Header("webp", width, height)


def _require_length(data: bytes, length: int) -> None:
    if len(data) < length:
        raise BadImageError(Reason.TRUNCATED, "the file ends inside its header")


_Test = Callable[[bytes], bool]


def _starts(*prefixes: bytes) -> _Test:
    return lambda data: data.startswith(prefixes)


def _media_brand(*brands: bytes) -> _Test:
    return lambda data: data[4:8] == b"ftyp" and data[8:12] in brands


_READERS: dict[str, tuple[_Test, Callable[[bytes], Header]]] = {
    "jpeg": (_starts(b"\xff\xd8\xff"), _read_jpeg),
    "png": (_starts(b"\x89PNG\r\n\x1a\n"), _read_png),
    "webp": (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _read_webp),
    "gif": (_starts(b"GIF87a", b"GIF89a"), _read_gif),
    "tiff": (_starts(b"II*\0", b"MM\0*"), _read_tiff),
    "bmp": (_starts(b"BM"), _read_bmp),
}

FORMATS = tuple(_READERS)


def format_of(data: bytes) -> str | None:
    """Return which of `FORMATS` encoded bytes claim to be, by their first few; None: none."""
    return next((name for name, (is_format, _) in _READERS.items() if is_format(data)), None)


_KNOWN_BUT_REFUSED: list[tuple[_Test, str]] = [
    (_media_brand(b"heic", b"heix", b"mif1", b"msf1", b"hevc"), "HEIC"),
    (_media_brand(b"avif", b"avis"), "AVIF"),
    (_starts(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "JPEG 2000"),
    (_starts(b"\xff\x0a", b"\0\0\0\x0cJXL "), "JPEG XL"),
    (_starts(b"%PDF"), "PDF"),
    (_starts(b"8BPS"), "Photoshop"),
    (_starts(b"\0\0\1\0"), "ICO"),
    (_starts(b"II+\0", b"MM\0+"), "BigTIFF"),
    (_starts(b"DICM"), "DICOM"),
    (lambda data: data[128:132] == b"DICM", "DICOM"),
    (lambda data: b"<svg" in data[:1024], "SVG"),
]
