"""Reads an image's format, size and orientation from its header, without allocating pixels.

Encoded images are untrusted. Decoders allocate by the size that a header claims, some of them as
soon as they open a file, so the header is first read here, in plain Python, and checked against the
contract's limits.
"""

from __future__ import annotations

import contextlib
import functools
import re
import struct
from collections.abc import Callable, Iterator

from eagleray.core.errors import BadImageError, Reason
from eagleray.imaging.contract import FORMATS, Format
from eagleray.imaging.header import (
    MAX_BLOCKS,
    Header,
    damaged,
    require_length,
    truncated,
    unsupported,
)
from eagleray.imaging.heif import heif_format, read_heif
from eagleray.imaging.tiff import exif_orientation, read_tiff
from eagleray.imaging.unknown_formats import unknown_format_error

__all__ = ["Header", "detect_format", "probe"]

MAX_SKIPPED_BYTES = 2**16  # stray and fill bytes in a header
MAX_RLE_PIXELS = 2**22  # Pillow decodes run lengths of BMP in plain Python
MAX_CHANNELS = 4  # of a JPEG 2000
FEW_SCANS = 12  # of a JPEG; encoders write about ten


def probe(data: bytes, formats: tuple[Format, ...] = FORMATS) -> Header:
    """Read the header of an encoded image.

    Args:
        data: The whole file.
        formats: Accepted formats; others are `unsupported_format`.

    Raises:
        BadImageError: With reason `truncated`, `not_an_image`, `unsupported_format`,
            `too_many_pixels` or `unreadable`.
    """
    if not data:
        raise truncated("the file is empty (0 bytes)")
    found = detect_format(data)
    if found is None:
        raise unknown_format_error(data, formats)
    if found not in formats:
        raise unsupported(
            f"{found} is not among the formats that this model's contract reads: "
            f"{', '.join(formats)}"
        )
    try:
        header = _READERS[found][1](data)
    except (struct.error, IndexError) as error:
        raise truncated() from error
    if header.width < 1 or header.height < 1:
        raise damaged(f"the header claims {header.width} x {header.height} pixels")
    return header


# --- one reader per format --------------------------------------------------------------------


_SEQUENTIAL = {0xC0, 0xC1}
_NO_FRAMES = {0xC4, 0xC8, 0xCC}  # other segments with markers between those of frames
_UNSUPPORTED_FRAMES = {
    0xC3,
    0xC5,
    0xC6,
    0xC7,
    0xCB,
    0xCD,
    0xCE,
    0xCF,
    0xF7,
}  # lossless, hierarchical
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


def _read_jpeg(data: bytes) -> Header:
    """Read the marker segments up to the frame header (ITU-T T.81, annex B).

    Of several EXIF blocks the first one counts, as in Pillow and viewers.
    """
    orientation = None
    for marker, position in _jpeg_segments(data):
        if marker in (0xD9, 0xDA):
            raise damaged("the JPEG has no frame header before its data")
        if (0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES) or marker == 0xF7:
            bits, height, width, components = struct.unpack_from(">BHHB", data, position + 2)
            if marker in _UNSUPPORTED_FRAMES or bits != 8:
                kind = "JPEG-LS" if marker == 0xF7 else f"a JPEG of {bits} bits (SOF{marker & 15})"
                raise unsupported(f"{kind} is not read; only lossy JPEGs of 8 bits are")
            scans = _num_scans(data, position, marker, components)
            return Header("jpeg", width, height, components, orientation or 1, scans)
        if (
            marker == 0xE1
            and orientation is None
            and data[position + 2 : position + 8] == b"Exif\0\0"
        ):
            (length,) = struct.unpack_from(">H", data, position)
            orientation = exif_orientation(data[position + 8 : position + length])
    raise damaged("the JPEG has too many segments before its frame")


def _jpeg_segments(data: bytes, position: int = 2) -> Iterator[tuple[int, int]]:
    """Yield each marker and the position of its segment, which starts with its length.

    The data between the header of a scan and the next marker are skipped.
    """
    num_skipped = 0
    for _ in range(MAX_BLOCKS):
        while data[position] != 0xFF or data[position + 1] in (0x00, 0xFF):
            position += 1  # decoders skip stray and fill bytes between segments too
            num_skipped += 1
            if num_skipped > MAX_SKIPPED_BYTES:
                raise damaged("the JPEG header is full of stray bytes")
        marker = data[position + 1]
        position += 2
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a segment
            continue
        yield marker, position
        (length,) = struct.unpack_from(">H", data, position)
        position += max(length, 2)
        if marker == 0xDA:
            after = _NEXT_MARKER.search(data, position)
            position = len(data) if after is None else after.end() - 2


def _num_scans(data: bytes, frame: int, marker: int, components: int) -> int:
    """Count the scans from a frame header to the end of the image.

    A sequential frame ends with a scan of all components. A small count need not be exact, as no
    image is rejected for it.
    """
    if marker not in _SEQUENTIAL:
        upper_bound = data.count(b"\xff\xda", frame)
        if upper_bound <= FEW_SCANS:
            return max(upper_bound, 1)
    (length,) = struct.unpack_from(">H", data, frame)
    num_scans = 0
    with contextlib.suppress(struct.error, IndexError):  # the file ends without an end marker
        for kind, position in _jpeg_segments(data, frame + max(length, 2)):
            if kind == 0xD9:
                break
            if kind == 0xDA:
                num_scans += 1
                if marker in _SEQUENTIAL and data[position + 2] >= components:
                    break
        else:
            raise damaged("the JPEG has too many segments between its scans")
    return max(num_scans, 1)


def _read_png(data: bytes) -> Header:
    require_length(data, 24)
    if data[12:16] == b"CgBI":
        raise unsupported("a PNG in Apple's own form (CgBI) is not read; save it as a standard PNG")
    if data[12:16] != b"IHDR":
        raise damaged("the PNG does not start with its header chunk")
    width, height = struct.unpack_from(">II", data, 16)
    _check_num_chunks(data)
    return Header("png", width, height)


def _check_num_chunks(data: bytes) -> None:
    position = 8
    for _ in range(MAX_BLOCKS):
        if position + 8 > len(data):
            return
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    raise damaged(f"the PNG has more than {MAX_BLOCKS:,} chunks")


def _read_gif(data: bytes) -> Header:
    """Return the larger of the screen and the first frame, which may exceed its screen."""
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
        if num_blocks > MAX_BLOCKS:
            raise damaged("the GIF has too many blocks before its frame")
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
        if compression in (1, 2) and width * abs(height) > MAX_RLE_PIXELS:
            raise BadImageError(
                Reason.TOO_MANY_PIXELS,
                f"the BMP claims {width:,} x {abs(height):,} run-length encoded pixels, the limit "
                f"is {MAX_RLE_PIXELS:,}",
            )
    return Header("bmp", width, abs(height))


def _read_webp(data: bytes) -> Header:
    """Read the first chunk, which is of one of three types (RFC 9649, section 2)."""
    require_length(data, 30)
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
        raise damaged("the WebP has no image chunk at its start")
    return Header("webp", width, height)


def _read_jpeg2000(data: bytes) -> Header:
    """Read the size marker of the codestream (ITU-T T.800, annex A)."""
    start = _codestream(data)
    if data[start : start + 4] != b"\xff\x4f\xff\x51":
        raise damaged("the JPEG 2000 has no codestream")
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, channels = (
        struct.unpack_from(">8IH", data, start + 8)
    )
    if channels > MAX_CHANNELS:
        raise unsupported(f"a JPEG 2000 of {channels:,} channels is not read")
    if right <= left or bottom <= top or not tile_width or not tile_height:
        raise damaged("the JPEG 2000 has no pixels")
    tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    if tiles > MAX_BLOCKS:
        raise damaged(f"the JPEG 2000 has {tiles:,} tiles")
    _check_codestream(data, start)
    return Header("jpeg2000", right - left, bottom - top)


def _codestream(data: bytes) -> int:
    """Return the start of the codestream, which may be inside of a file of boxes."""
    if data.startswith(b"\xff\x4f"):
        return 0
    position = 0
    for _ in range(MAX_BLOCKS):
        size, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"jp2c":
            return position + (16 if size == 1 else 8)
        if size < 8:
            break
        position += size
    raise damaged("the JPEG 2000 has no codestream")


def _check_codestream(data: bytes, start: int) -> None:
    """Check that all tiles are there: decoders fill in what is missing at the end."""
    position = start + 2
    for _ in range(MAX_BLOCKS):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == 0xFF90:  # a tile with its own length
            (length,) = struct.unpack_from(">I", data, position + 6)
            if length == 0:
                if b"\xff\xd9" in data[position + 12 :]:
                    return
                break
            position += length
        else:
            position += 2 + length
        if data[position : position + 2] == b"\xff\xd9":
            return
        if position >= len(data):
            break
    raise truncated("the jpeg2000 data end early")


_Test = Callable[[bytes], bool]
_Reader = Callable[[bytes], Header]


def _starts(*prefixes: bytes) -> _Test:
    return lambda data: data.startswith(prefixes)


def _heif(name: str) -> tuple[_Test, _Reader]:
    is_format: _Test = lambda data: heif_format(data) == name  # noqa: E731
    return is_format, functools.partial(read_heif, file_format=name)


_READERS: dict[Format, tuple[_Test, _Reader]] = {
    "jpeg": (_starts(b"\xff\xd8\xff"), _read_jpeg),
    "png": (_starts(b"\x89PNG\r\n\x1a\n"), _read_png),
    "webp": (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _read_webp),
    "gif": (_starts(b"GIF87a", b"GIF89a"), _read_gif),
    "tiff": (_starts(b"II*\0", b"MM\0*"), read_tiff),
    "bmp": (_starts(b"BM"), _read_bmp),
    "heic": _heif("heic"),
    "avif": _heif("avif"),
    "jpeg2000": (_starts(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), _read_jpeg2000),
}


def detect_format(data: bytes) -> Format | None:
    """Return the format of an encoded image by its first bytes; None if it is not supported."""
    return next((name for name, (is_format, _) in _READERS.items() if is_format(data)), None)
