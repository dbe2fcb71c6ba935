"""Encoded images for tests, made in memory: good ones of every kind, and hostile headers."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener(thumbnails=False)

Pixels = npt.NDArray[np.uint8]

ORIENTATION_TAG = 0x0112

LOSSLESS: dict[str, dict[str, Any]] = {
    "jpeg": {"quality": 95},
    "webp": {"lossless": True},
    "heic": {"quality": 100, "chroma": 444},
    "avif": {"quality": 100, "subsampling": "4:4:4"},
}
"""Options that keep a format as near to its input as it can."""


def photo(width: int = 97, height: int = 61, *, seed: int = 0, noise: float = 6.0) -> Pixels:
    """Return a colourful picture, uint8 (height, width, 3): gradients, waves, a disc and noise."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    rows, columns = rows / max(height - 1, 1), columns / max(width - 1, 1)
    red = 230 * columns
    green = 128 + 90 * np.sin(7 * rows + 4 * columns)
    blue = 220 * (1 - rows)
    disc = (rows - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.04
    picture = np.stack([red, green, blue], axis=2)
    picture[disc] = (240, 200, 40)
    picture += generator.normal(0, noise, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def encode(
    pixels: npt.NDArray[Any] | Image.Image, file_format: str = "png", **options: Any
) -> bytes:
    """Encode an array or a Pillow image; `options` go to Pillow's writer."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="heif" if file_format == "heic" else file_format, **options)
    return buffer.getvalue()


def heic_of_tiles(pixels: Pixels, side: int = 64) -> bytes:
    """Return a HEIC of square tiles, as telephones write them."""
    pillow_heif.options.GRID_TILE_SIZE = side
    try:
        return encode(pixels, "heic")
    finally:
        pillow_heif.options.GRID_TILE_SIZE = 0


def with_heif_size(data: bytes, width: int, height: int) -> bytes:
    """Return a HEIC or AVIF that states another size outside its coded picture."""
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", width, height) + data[place + 8 :]


def open_image(data: bytes) -> Image.Image:
    """Decode with Pillow alone, as the reference for what the library does."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def oriented(file_format: str, orientation: int, *, width: int = 23, height: int = 14) -> bytes:
    """Return a photo whose EXIF block carries an orientation."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options: dict[str, Any] = {**LOSSLESS.get(file_format, {}), "exif": exif.tobytes()}
    return encode(photo(width, height), file_format, **options)


def cmyk_jpeg(pixels: Pixels | None = None) -> bytes:
    """Return a JPEG of four components."""
    image = Image.fromarray(photo() if pixels is None else pixels).convert("CMYK")
    return encode(image, "jpeg", quality=95)


def gray16(width: int = 64, height: int = 16) -> npt.NDArray[np.uint16]:
    """Return a 16-bit gradient from black to white, left to right, uint16 (height, width)."""
    return np.tile(np.linspace(0, 65535, width).astype(np.uint16), (height, 1))


def half_transparent(mode: str, *, side: int = 8) -> Image.Image:
    """Return a square of colour 200 or (200, 0, 0), its left half transparent, in a mode.

    Args:
        mode: `RGBA`, `LA` or `P`; the palette holds the transparency of the last one.
        side: Of the square, in pixels.
    """
    left = np.arange(side) < side // 2
    alpha = np.tile(np.where(left, 0, 255), (side, 1)).astype(np.uint8)
    if mode == "P":
        image = Image.fromarray((alpha > 0).astype(np.uint8), mode=None).convert("P")
        image.putpalette([200, 0, 0, 200, 0, 0])
        image.info["transparency"] = 0
        return image
    colour = (200,) if mode == "LA" else (200, 0, 0)
    channels = [np.full((side, side), level, np.uint8) for level in colour]
    return Image.fromarray(np.stack([*channels, alpha], axis=2))


# --- bytes written by hand ----------------------------------------------------------------------


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with its length and checksum."""
    check = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def png_file(width: int, height: int, *chunks: bytes, bits: int = 8, colour_type: int = 0) -> bytes:
    """Return a PNG of a header, the chunks and an end."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = b"".join([png_chunk(b"IHDR", header), *chunks, png_chunk(b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


def tiff_file(
    tags: dict[int, int], data: bytes = b"", *, order: str = "<", data_tag: int = 273
) -> bytes:
    """Return a TIFF of one directory of LONG tags, followed by data that `data_tag` points at."""
    tags = {**tags, data_tag: 0}
    data_starts = 8 + 2 + 12 * len(tags) + 4
    tags[data_tag] = data_starts
    magic = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())
    )
    return (
        magic
        + struct.pack(f"{order}IH", 8, len(tags))
        + entries
        + struct.pack(f"{order}I", 0)
        + data
    )


def tiff_of_huge_tile(side: int = 46_000) -> bytes:
    """Return a TIFF of 16 x 16 pixels that says they lie in one tile of `side` x `side`."""
    data = zlib.compress(bytes(64))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 325: len(data)}
    return tiff_file(tags, data, data_tag=324)


@dataclass(frozen=True, slots=True)
class Bomb:
    """A small file whose header claims a huge picture."""

    name: str
    format: str
    data: bytes
    width: int
    height: int


def bombs() -> list[Bomb]:
    """Return one bomb for each kind of header that the library reads."""
    return [
        Bomb("png", "png", png_file(60_000, 60_000, _few_pixels()), 60_000, 60_000),
        Bomb("png-largest", "png", png_file(2**31 - 1, 2**31 - 1), 2**31 - 1, 2**31 - 1),
        Bomb("gif", "gif", _gif(65_000, 64_000), 65_000, 64_000),
        Bomb("gif-frame", "gif", _gif(1, 1, frame=(65_000, 64_000)), 65_000, 64_000),
        Bomb("webp-vp8x", "webp", _webp(b"VP8X", _vp8x(2**24, 2**24)), 2**24, 2**24),
        Bomb("webp-vp8l", "webp", _webp(b"VP8L", _vp8l(16_384, 16_000)), 16_384, 16_000),
        Bomb("webp-vp8", "webp", _webp(b"VP8 ", _vp8(16_383, 16_000)), 16_383, 16_000),
        Bomb("tiff", "tiff", tiff_file({256: 10**6, 257: 10**6}), 10**6, 10**6),
        Bomb("tiff-big", "tiff", tiff_file({256: 10**6, 257: 10**6}, order=">"), 10**6, 10**6),
        Bomb("bmp", "bmp", _bmp(2**30, 2**30), 2**30, 2**30),
        Bomb("bmp-top-down", "bmp", _bmp(50_000, -50_000), 50_000, 50_000),
        Bomb("bmp-core", "bmp", _bmp_core(65_535, 65_535), 65_535, 65_535),
        Bomb("jpeg", "jpeg", _jpeg(65_535, 65_000, marker=0xC0), 65_535, 65_000),
        Bomb("jpeg-progressive", "jpeg", _jpeg(65_535, 65_000, marker=0xC2), 65_535, 65_000),
        Bomb("heic", "heic", _heif("heic", 60_000, 50_000), 60_000, 50_000),
        Bomb("avif", "avif", _heif("avif", 60_000, 50_000), 60_000, 50_000),
        Bomb("jpeg2000", "jpeg2000", _jpeg2000(60_000, 50_000), 60_000, 50_000),
    ]


def _few_pixels() -> bytes:
    return png_chunk(b"IDAT", zlib.compress(bytes(64)))


def _gif(width: int, height: int, *, frame: tuple[int, int] | None = None) -> bytes:
    """A GIF with a comment before its first frame; disposal 2 makes decoders allocate early."""
    screen = struct.pack("<HHBBB", width, height, 0, 0, 0)
    control = b"!\xf9\x04\x08\0\0\0\0"
    comment = b"!\xfe\x05hello\0"
    image = b"," + struct.pack("<HHHHB", 0, 0, *(frame or (width, height)), 0)
    return b"GIF89a" + screen + control + comment + image + b"\x08\x01\0\0;"


def _webp(chunk: bytes, payload: bytes) -> bytes:
    body = b"WEBP" + chunk + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _vp8x(width: int, height: int) -> bytes:
    return bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def _vp8l(width: int, height: int) -> bytes:
    return b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(16)


def _vp8(width: int, height: int) -> bytes:
    return b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(16)


def _bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 118, 0, 0, 54) + info + bytes(64)


def _bmp_core(width: int, height: int) -> bytes:
    info = struct.pack("<IHHHH", 12, width, height, 1, 24)
    return b"BM" + struct.pack("<IHHI", 90, 0, 0, 26) + info + bytes(64)


def _jpeg(width: int, height: int, *, marker: int) -> bytes:
    """A JPEG of a real file's tables, with another frame header."""
    whole = encode(photo(16, 16), "jpeg", progressive=marker == 0xC2)
    frame = whole.index(bytes((0xFF, marker)))
    return whole[: frame + 5] + struct.pack(">HH", height, width) + whole[frame + 9 :]


def _heif(file_format: str, width: int, height: int) -> bytes:
    return with_heif_size(encode(np.full((64, 64, 3), 90, np.uint8), file_format), width, height)


def _jpeg2000(width: int, height: int) -> bytes:
    """A JPEG 2000 with another size in its codestream, in one tile."""
    whole = encode(np.full((16, 16, 3), 90, np.uint8), "jpeg2000")
    size = whole.index(b"\xff\x51") + 6
    sized = struct.pack(">6I", width, height, 0, 0, width, height)
    return whole[:size] + sized + whole[size + 24 :]
