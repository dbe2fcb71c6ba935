"""Images that are small as files and would be large, or slow, in a decoder."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.support.images import (
    bombs,
    encode,
    heic_of_tiles,
    photo,
    png_chunk,
    png_file,
    tiff_file,
    with_heif_size,
)

__all__ = ["good_but_suspicious", "hostile_images"]

PIXELS = png_chunk(b"IDAT", zlib.compress(bytes(17 * 16)))
MANY = 70_000


def hostile_images() -> dict[str, tuple[bytes, str]]:
    """Return images with the reason that each is refused for."""
    large = {bomb.name: (bomb.data, "too_many_pixels") for bomb in bombs()}
    return {
        **large,
        "webp-animated": (_animated_webp(2**24), "too_many_pixels"),
        "bmp-run-lengths": (_bmp_of_run_lengths(60_000_000), "too_many_pixels"),
        "png-chunks": (png_file(16, 16, *[png_chunk(b"teXt", b"")] * MANY, PIXELS), "unreadable"),
        "jpeg-scans": (_jpeg_of_scans(3000, 2000, 500), "unreadable"),
        "jpeg-scans-of-many-pixels": (_jpeg_of_scans(10_000, 10_000, 40), "unreadable"),
        "tiff-strips": (_tiff_of_strips(MANY), "unreadable"),
        "tiff-strips-that-are-not-there": (_tiff_of_strips(2**31, held=0), "unreadable"),
        "heic-larger-inside": (_larger_inside("heic"), "too_many_pixels"),
        "avif-larger-inside": (_larger_inside("avif"), "too_many_pixels"),
        "heic-of-itself": (_heic_of_itself(), "unreadable"),
        "jpeg2000-tiles": (_jpeg2000_of_tiles(), "unreadable"),
        "tiff-tags": (b"II*\0" + struct.pack("<IH", 8, 60_000) + bytes(720_000), "unreadable"),
        "tiff-loop": (b"II*\0" + struct.pack("<IHI", 8, 0, 8), "unreadable"),
        "tiff-samples": (
            tiff_file({256: 16, 257: 16, 277: 65_535}, bytes(64)),
            "unsupported_format",
        ),
        "gzip": (zlib.compress(bytes(10**7), wbits=31), "not_an_image"),
    }


def good_but_suspicious() -> dict[str, bytes]:
    """Return images that are answered, at no great cost."""
    frames = [Image.new("RGB", (100, 100), (number % 256, 0, 0)) for number in range(300)]
    whole = encode(photo(300, 200), "jpeg", progressive=True)
    return {
        "png-data": png_file(16, 16, png_chunk(b"IDAT", _zeros(200_000_000))),
        "png-text": png_file(16, 16, _text(b"zTXt", b"k\0\0"), PIXELS),
        "png-text-of-languages": png_file(16, 16, _text(b"iTXt", b"k\0\1\0\0\0"), PIXELS),
        "png-text-of-exif": png_file(16, 16, _text(b"zTXt", b"Raw profile type exif\0\0"), PIXELS),
        "png-profile": png_file(16, 16, _text(b"iCCP", b"k\0\0"), PIXELS),
        "png-many-texts": png_file(
            16, 16, *[_text(b"zTXt", b"%d\0\0" % key, 900_000) for key in range(100)], PIXELS
        ),
        "jpeg-before-a-film": whole + b"\xff\xda" * 1_000_000,
        "gif-frames": _animation(frames, "GIF"),
        "webp-frames": _animation(frames, "WEBP"),
        "jpeg-progressive": whole,
    }


def _zeros(size: int) -> bytes:
    compressor, block = zlib.compressobj(9), bytes(1_000_000)
    parts = [compressor.compress(block[: size - at]) for at in range(0, size, len(block))]
    return b"".join([*parts, compressor.flush()])


def _text(name: bytes, head: bytes, size: int = 200_000_000) -> bytes:
    return png_chunk(name, head + _zeros(size))


def _animation(frames: list[Image.Image], kind: str) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _animated_webp(side: int) -> bytes:
    """A WebP of a canvas for an animation."""
    flags, edge = b"\x02\0\0\0", (side - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + flags + edge + edge
    chunks += b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _bmp_of_run_lengths(width: int) -> bytes:
    """One row whose end comes at once: decoders fill it up."""
    data = b"\1\1\0\0\0\1"
    info = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 8, 1, len(data), 0, 0, 256, 0)
    starts = 14 + len(info) + 1024
    head = b"BM" + struct.pack("<IHHI", starts + len(data), 0, 0, starts)
    return head + info + bytes(1024) + data


def _jpeg_of_scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again, with another size in its header."""
    whole = encode(Image.new("L", (64, 64)), "jpeg", progressive=True)
    frame, last = whole.index(b"\xff\xc2"), whole.rindex(b"\xff\xda")
    sized = whole[: frame + 5] + struct.pack(">HH", height, width) + whole[frame + 9 : last]
    return sized + whole[last:-2] * count + b"\xff\xd9"


def _tiff_of_strips(count: int, *, held: int | None = None) -> bytes:
    """A TIFF of 16 x 16 pixels in very many strips."""
    place = 8 + 2 + 9 * 12 + 4
    tags = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)]
    entries = [(tag, 4, 1, value) for tag, value in tags]
    entries += [(273, 4, count, place), (279, 4, count, place)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)
    return head + bytes(4 * (count if held is None else held))


def _larger_inside(file_format: str) -> bytes:
    """A picture whose container says that it is much smaller."""
    return with_heif_size(encode(np.full((1024, 2048, 3), 90, np.uint8), file_format), 16, 16)


def _heic_of_itself() -> bytes:
    """A picture whose tiles are all the picture itself."""
    data = heic_of_tiles(photo(300, 200))
    place = data.index(b"dimg") + 8
    count = int.from_bytes(data[place - 2 : place], "big")
    return data[:place] + struct.pack(">H", 1) * count + data[place + 2 * count :]


def _jpeg2000_of_tiles() -> bytes:
    """A picture of 81 million tiles of one pixel."""
    data = encode(photo(16, 16), "jpeg2000", no_jp2=True)
    return data[:8] + struct.pack(">6I", 9_000, 9_000, 0, 0, 1, 1) + data[32:]
