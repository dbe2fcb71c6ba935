"""TIFF files in every layout show the right pixels, or are rejected."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eagleray.core.errors import Reason
from tests.support.images import (
    encode,
)
from tests.support.squares import (
    HEIGHT,
    WIDTH,
    pixels_of,
    refusal,
    shows_the_squares,
    squares,
)

Tags = dict[int, tuple[int, ...]]


def tiff(tags: Tags, blocks: list[bytes], *, order: str = "<", tail: bytes = b"") -> bytes:
    """Return a TIFF of one strip for each block; `tags` are SHORTs, or LONGs where they must be."""
    tags = {256: (WIDTH,), 257: (HEIGHT,), 259: (1,), 278: (HEIGHT,), **tags}
    size = 8 + 2 + 12 * (len(tags) + 2) + 4
    lengths = tuple(map(len, blocks))
    extra = sum(4 * len(values) for values in tags.values()) + 8 * len(blocks)
    starts = tuple(size + extra + sum(lengths[:index]) for index in range(len(blocks)))
    entries, beyond = b"", b""
    for tag, values in sorted({**tags, 273: starts, 279: lengths}.items()):
        content = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            place = struct.pack(f"{order}I", size + len(beyond))
            beyond += content
            content = place
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + content
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    directory = struct.pack(f"{order}H", len(tags) + 2) + entries + bytes(4)
    return head + directory + beyond.ljust(extra, b"\0") + b"".join(blocks) + tail


def planes(dtype: str, channels: int = 3) -> list[bytes]:
    scale = 257 if dtype.endswith("u2") else 1
    values = squares().astype(int) * scale
    opaque = np.full((HEIGHT, WIDTH, 1), 255 * scale)
    values = np.concatenate([values, opaque], axis=2)[:, :, :channels]
    return [values[:, :, index].astype(dtype).tobytes() for index in range(channels)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("bits", "channels"), [(8, 3), (8, 4), (16, 3), (16, 4)])
def test_a_tiff_whose_channels_lie_apart_has_its_colours(
    order: str, bits: int, channels: int
) -> None:
    tags: Tags = {258: (bits,) * channels, 262: (2,), 277: (channels,), 284: (2,)}
    if channels == 4:
        tags[338] = (1,)
    data = tiff(tags, planes(f"{order}u{bits // 8}", channels), order=order)
    assert shows_the_squares(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("bits", "dtype"), [(8, "u1"), (16, "u2")])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_black_and_white_of_a_tiff_are_never_exchanged(
    order: str, bits: int, dtype: str, white_is_zero: bool
) -> None:
    most = 2**bits - 1
    values = np.linspace(0, most, WIDTH)[None].repeat(HEIGHT, 0).round().astype(np.int64)
    stored = (most - values if white_is_zero else values).astype(f"{order}{dtype}")
    tags: Tags = {258: (bits,), 262: (int(not white_is_zero),), 277: (1,)}
    pixels = pixels_of(tiff(tags, [stored.tobytes()], order=order), color="gray")[:, :, 0]
    assert np.abs(pixels.astype(int) - (values >> (bits - 8))).max() <= 1
    assert (pixels[0, 0], pixels[0, -1]) == (0, 255)


def test_white_is_zero_in_1_bit_too() -> None:
    bits = np.zeros((HEIGHT, WIDTH), bool)
    bits[:, : WIDTH // 2] = True
    data = tiff({258: (1,), 262: (0,), 277: (1,)}, [np.packbits(bits, axis=1).tobytes()])
    pixels = pixels_of(data, color="gray")[:, :, 0]
    assert np.array_equal(pixels, np.where(bits, 0, 255))


def test_12_bit_gray_is_as_light_as_its_8_bit_twin() -> None:
    values = np.linspace(0, 4095, WIDTH)[None].repeat(HEIGHT, 0).round().astype(np.uint16)
    first, second = values[:, ::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2)
    data = tiff({258: (12,), 262: (1,), 277: (1,)}, [packed.astype(np.uint8).tobytes()])
    pixels = pixels_of(data, color="gray")[:, :, 0]
    assert np.array_equal(pixels, values >> 4)


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("apart", [1, 2])
@pytest.mark.parametrize(
    ("tags", "described"),
    [
        ({258: (8,) * 6, 262: (1,), 277: (6,)}, "6 channels of 8-bit unsigned samples (gray"),
        (
            {258: (8,) * 6, 262: (1,), 277: (6,), 338: (0,) * 5},
            "6 channels of 8-bit unsigned samples (gray",
        ),
        ({258: (8,) * 3, 262: (8,), 277: (3,)}, "3 channels of 8-bit unsigned samples (CIE Lab"),
        ({258: (8,), 262: (1,), 277: (1,), 339: (2,)}, "1 channel of 8-bit signed samples (gray"),
        (
            {258: (32,) * 3, 262: (2,), 277: (3,), 339: (3,) * 3},
            "3 channels of 32-bit floating-point samples (RGB",
        ),
    ],
    ids=["six", "six-as-gdal-writes", "lab", "signed-bytes", "float-rgb"],
)
def test_a_tiff_of_other_channels_is_refused_for_what_it_is(
    tags: Tags, described: str, apart: int, color: str
) -> None:
    num_bytes = WIDTH * HEIGHT * tags[258][0] // 8
    data = tiff({**tags, 284: (apart,)}, [bytes(num_bytes)] * tags[277][0])
    reason, message = refusal(data, color=color)
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert described in message
    assert " at 0x" not in message


def test_a_compression_that_is_not_read_is_named() -> None:
    data = tiff({258: (8,), 262: (1,), 277: (1,), 259: (34887,)}, [bytes(100)])
    assert refusal(data) == (
        "unsupported_format",
        "a TIFF compressed by LERC (number 34887) is not read",
    )


def with_pages(first: Image.Image, *others: Image.Image, **options: Any) -> bytes:
    return encode(first, "tiff", save_all=True, append_images=others, **options)


def test_the_first_page_of_a_tiff_is_the_image_but_a_preview_is_not() -> None:
    photograph, small = Image.fromarray(squares()), Image.fromarray(squares()).resize((8, 6))
    other = Image.fromarray(squares()[::-1])
    assert shows_the_squares(with_pages(photograph, other))
    assert shows_the_squares(encode(photograph, "tiff", tiffinfo={254: 1}))  # there is no other
    reason, message = refusal(with_pages(small, photograph, tiffinfo={254: 1}))
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert "reduced copy of another one" in message


@pytest.mark.parametrize("kind", ["dng", "cr2", "filters"])
def test_a_cameras_raw_file_is_not_read_as_its_preview(kind: str) -> None:
    if kind == "dng":
        data = encode(squares(), "tiff", tiffinfo={50706: b"\1\4\0\0"})
    elif kind == "cr2":
        whole = encode(squares(), "tiff")
        assert whole[:8] == b"II*\0\x08\0\0\0"
        moved = whole + whole[8:]
        data = whole[:4] + struct.pack("<I", len(whole)) + b"CR\2\0" + moved[12:]
    else:
        tags: Tags = {258: (8,), 262: (1,), 277: (1,)}
        place = len(tiff({**tags, 330: (0,)}, [bytes(WIDTH * HEIGHT)]))
        inner = struct.pack("<HHHII", 1, 262, 4, 1, 32803) + bytes(4)
        data = tiff({**tags, 330: (place,)}, [bytes(WIDTH * HEIGHT)], tail=inner)
    reason, message = refusal(data)
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert message.startswith("a camera raw file")


@pytest.mark.parametrize("file_format", ["png", "tiff"])
def test_a_contract_may_require_a_range_of_16_bit_values(file_format: str) -> None:
    values = np.linspace(0, 4095, WIDTH)[None].repeat(HEIGHT, 0).round().astype(np.uint16)
    data = encode(values, file_format)
    assert pixels_of(data, color="gray").max() == 15
    pixels = pixels_of(data, color="gray", value_range=(0.0, 4095.0))[:, :, 0]
    assert np.array_equal(pixels, np.rint(values * (255 / 4095)))
    clipped = pixels_of(data, color="gray", value_range=(1000.0, 2000.0))[0, :, 0]
    assert (clipped[0], clipped[-1]) == (0, 255)
    assert np.array_equal(pixels_of(data, value_range=(0.0, 4095.0))[:, :, 1], pixels)


@pytest.mark.parametrize(("dtype", "low", "high"), [("f4", -1.0, 1.0), ("i4", -1e5, 1e5)])
def test_a_range_gives_a_meaning_to_floats_and_long_integers(
    dtype: str, low: float, high: float
) -> None:
    values = np.linspace(low, high, WIDTH)[None].repeat(HEIGHT, 0).astype(f"<{dtype}")
    data = encode(values, "tiff")
    reason, message = refusal(data)
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert "value_range" in message
    pixels = pixels_of(data, color="gray", value_range=(low, high))[0, :, 0]
    assert np.array_equal(pixels, np.rint((values[0] - low) * (255 / (high - low))))


def test_a_range_leaves_images_of_8_bits_as_they_are() -> None:
    assert shows_the_squares(encode(squares()), value_range=(0.0, 4095.0))


def test_values_that_are_no_numbers_are_the_lowest() -> None:
    values = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    assert pixels_of(encode(values, "tiff"), value_range=(0.0, 1.0)).max() == 0
