"""JPEG and PNG files in every variant of cameras and programs show the right pixels."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from eagleray.core.errors import Reason
from eagleray.imaging import probe
from tests.support.images import (
    Pixels,
    encode,
    photo,
    png_chunk,
    png_file,
)
from tests.support.squares import (
    COLORS,
    HEIGHT,
    WIDTH,
    pixels_of,
    refusal,
    shows_the_squares,
    squares,
)


def exif_segment(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def turned() -> Pixels:
    """Return the squares as a camera on its side stores them: orientation 6 puts them upright."""
    return np.ascontiguousarray(np.rot90(squares()))


def test_of_two_exif_blocks_the_first_one_counts() -> None:
    stored = encode(turned(), "jpeg", quality=95)
    assert shows_the_squares(stored[:2] + exif_segment(6) + exif_segment(1) + stored[2:])
    upright = encode(squares(), "jpeg", quality=95)
    assert shows_the_squares(upright[:2] + exif_segment(1) + exif_segment(6) + upright[2:])


@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_the_end_of_a_jpeg_is_no_scan_of_it(progressive: bool) -> None:
    still = encode(squares(), "jpeg", quality=95, progressive=progressive)
    assert probe(still).scans == (10 if progressive else 1)
    for film in (b"\xff\xda" * 100_000, still * 200, b"\0\0\0\x18ftypmp42" + bytes(10**6)):
        assert probe(still + film).scans == probe(still).scans
        assert shows_the_squares(still + film)


def test_the_picture_is_not_the_thumbnail_inside_its_exif() -> None:
    thumbnail = encode(squares()[::-1], "jpeg")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    whole = encode(squares(), "jpeg", quality=95)
    assert shows_the_squares(whole[:2] + segment + whole[2:])


def test_the_first_of_a_telephones_several_pictures_is_the_image() -> None:
    other = Image.fromarray(squares()[::-1])
    data = encode(squares(), "mpo", save_all=True, append_images=[other], quality=95)
    assert shows_the_squares(data)


@pytest.mark.parametrize(
    ("marker", "bits", "name"),
    [(0xC3, 8, "a JPEG of 8 bits (SOF3)"), (0xC1, 12, "a JPEG of 12 bits"), (0xF7, 8, "JPEG-LS")],
)
def test_a_jpeg_of_another_process_is_named(marker: int, bits: int, name: str) -> None:
    data = bytearray(encode(squares(), "jpeg"))
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = marker, bits
    reason, message = refusal(bytes(data))
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert message.startswith(name)


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [("jpeg", "RGB"), ("jpeg", "CMYK"), ("png", "RGB"), ("webp", "RGB"), ("avif", "RGB")],
)
def test_an_orientation_in_xmp_alone_is_as_good_as_none(file_format: str, mode: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    options: dict[str, Any] = {} if file_format == "png" else {"quality": 95}
    image = Image.fromarray(squares()).convert(mode)
    assert shows_the_squares(encode(image, file_format, xmp=xmp, **options))


def test_an_end_inside_a_comment_hides_no_scan() -> None:
    whole = encode(photo(), "jpeg", progressive=True)
    last = whole.rindex(b"\xff\xda")
    comment = b"\xff\xfe\0\4\xff\xd9"
    assert probe(whole[:last] + comment + whole[last:-2] * 50 + b"\xff\xd9").scans == 59


def rows(pixels: npt.NDArray[Any]) -> bytes:
    return png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)))


def png(*chunks: bytes, pixels: Pixels | None = None) -> bytes:
    body = rows(squares() if pixels is None else pixels)
    return png_file(WIDTH, HEIGHT, *chunks, body, colour_type=2)


EXIF_TEXT = b"Raw profile type exif\0"


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"tEXt", b"k\0" + b"a" * 3_000_000),
        png_chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"zTXt", EXIF_TEXT + b"\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"tEXt", EXIF_TEXT + b"0" * 3_000_000),
        png_chunk(b"zTXt", EXIF_TEXT + b"\0no zlib"),
    ],
    ids=["zTXt", "tEXt", "iTXt", "iCCP", "exif-zTXt", "exif-tEXt", "exif-damaged"],
)
def test_texts_and_profiles_of_a_png_may_be_large(chunk: bytes) -> None:
    assert shows_the_squares(png(chunk))


@pytest.mark.parametrize("compressed", [False, True])
def test_the_orientation_of_a_png_may_stand_in_a_text(compressed: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    block = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    chunk = png_chunk(b"tEXt", EXIF_TEXT + text)
    if compressed:
        chunk = png_chunk(b"zTXt", EXIF_TEXT + b"\0" + zlib.compress(text))
    assert shows_the_squares(png(chunk, pixels=np.ascontiguousarray(squares()[::-1, ::-1])))


@pytest.mark.parametrize("default_image", [False, True])
def test_the_still_picture_of_an_animated_png_is_the_image(default_image: bool) -> None:
    other = Image.fromarray(squares()[::-1])
    options: dict[str, Any] = {"save_all": True, "default_image": default_image}
    assert shows_the_squares(encode(squares(), "png", append_images=[other], **options))


def test_a_transparent_colour_of_16_bits_is_laid_over_white() -> None:
    values = squares().astype(">u2") * np.array(257, ">u2")
    values = values.astype(">u2")
    values[:24, :32] = (1000, 2000, 3000)
    chunk = png_chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000))
    data = png_file(WIDTH, HEIGHT, chunk, rows(values), bits=16, colour_type=2)
    pixels = pixels_of(data, alpha="white")
    assert pixels[12, 16].tolist() == [255, 255, 255]
    assert pixels[12, 48].tolist() == list(COLORS[1])


def test_apples_own_png_is_named() -> None:
    data = encode(squares())
    reason, message = refusal(data[:8] + png_chunk(b"CgBI", b"\x50\0\x20\x02") + data[8:])
    assert (reason, "CgBI" in message) == (Reason.UNSUPPORTED_FORMAT, True)
