"""HEIC, AVIF and JPEG 2000 files show the right pixels, or are rejected."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from eagleray.core.errors import Reason
from eagleray.imaging import FORMATS, Exact, ImageContract, decode, named_contract, probe
from tests.support.images import (
    encode,
    gray16,
    half_transparent,
    heic_of_tiles,
    oriented,
    photo,
    with_heif_size,
)
from tests.support.squares import (
    HEIGHT,
    WIDTH,
    pixels_of,
    refusal,
    shows_the_squares,
    squares,
)


@pytest.mark.parametrize("file_format", ["heic", "avif", "jpeg2000"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_heavy_formats_have_the_pixels_that_they_were_made_of(file_format: str, mode: str) -> None:
    image = Image.fromarray(photo(WIDTH, HEIGHT, noise=0)).convert(mode)
    pixels = pixels_of(encode(image, file_format))
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).mean() < 6


@pytest.mark.parametrize("name", ["torchvision-reference", "fast"])
@pytest.mark.parametrize("file_format", ["heic", "avif"])
def test_a_photograph_is_prepared_as_its_jpeg_twin_is(file_format: str, name: str) -> None:
    picture = photo(640, 427, noise=2)
    under = named_contract(name, formats=FORMATS)
    twin = decode(encode(picture, "jpeg", quality=92), under)
    found = decode(encode(picture, file_format, quality=85), under)
    difference = found.pixels.astype(int) - twin.pixels
    assert (found.width, found.height) == (twin.width, twin.height) == (640, 427)
    assert np.abs(difference).mean() < 4
    assert np.abs(difference.mean(axis=(0, 1))).max() < 2  # no colour drifts


@pytest.mark.parametrize("file_format", ["heic", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heavy_formats_are_turned_upright_once(file_format: str, orientation: int) -> None:
    """Both state the orientation twice: in EXIF, and as something that a decoder does."""
    data = oriented(file_format, orientation, width=64, height=32)
    twin = oriented("png", orientation, width=64, height=32)
    size = (32, 64) if orientation < 5 else (64, 32)
    under = ImageContract(formats=FORMATS, resize=Exact(height=size[0], width=size[1]))
    found, expected = decode(data, under), decode(twin, under)
    assert (found.width, found.height) == (expected.width, expected.height) == size[::-1]
    assert np.abs(found.pixels.astype(int) - expected.pixels).mean() < 8


@pytest.mark.parametrize("file_format", ["heic", "avif", "jpeg2000"])
@pytest.mark.parametrize(("alpha", "behind"), [("white", 255), ("black", 0)])
def test_transparency_of_heavy_formats_is_laid_over_a_colour(
    file_format: str, alpha: str, behind: int
) -> None:
    data = encode(half_transparent("RGBA", side=64), file_format)
    pixels = pixels_of(data, alpha=alpha).astype(int)
    assert np.abs(pixels[:, :24] - behind).max() < 12
    assert np.abs(pixels[:, 40:] - (200, 0, 0)).max() < 12


def test_a_heic_of_tiles_is_one_picture() -> None:
    picture = photo(300, 200)
    data = heic_of_tiles(picture)
    assert b"grid" in data
    header = probe(data)
    assert (header.format, header.width, header.height) == ("heic", 300, 200)
    under = ImageContract(formats=FORMATS, resize=Exact(height=200, width=300))
    assert np.abs(decode(data, under).pixels.astype(int) - picture).mean() < 8


def test_the_picture_that_a_file_calls_its_first_is_the_image() -> None:
    other = Image.fromarray(squares()[::-1])
    options = {"save_all": True, "append_images": [Image.fromarray(squares())]}
    assert shows_the_squares(encode(other, "heic", primary_index=1, **options))
    still = encode(squares(), "avif", save_all=True, append_images=[other])
    assert still[8:12] == b"avis"
    assert shows_the_squares(still)


def test_brands_that_say_little_do_not_hide_the_format() -> None:
    for file_format in ("heic", "avif"):
        data = encode(squares(), file_format)
        general = data[:8] + b"mif1" + data[12:]
        assert probe(general).format == file_format
        assert shows_the_squares(general)


@pytest.mark.parametrize("file_format", ["heic", "jpeg2000"])
def test_16_bits_in_heavy_formats_keep_their_gradient(file_format: str) -> None:
    data = encode(gray16(WIDTH, HEIGHT), file_format)
    pixels = pixels_of(data, color="gray")[0, :, 0].astype(int)
    assert np.abs(pixels - (gray16(WIDTH, 1)[0] >> 8)).max() <= 4


LARGE_BUT_FLAT = np.full((1024, 2048, 3), 90, np.uint8)


@pytest.mark.parametrize("file_format", ["heic", "avif"])
def test_a_picture_that_is_larger_inside_than_outside_is_refused(file_format: str) -> None:
    data = with_heif_size(encode(LARGE_BUT_FLAT, file_format), 16, 16)
    assert len(data) < 2_000
    assert refusal(data) == (
        "too_many_pixels",
        "coded pictures of 2,048 x 1,024 pixels are far larger than the image of 16 x 16",
    )


def tiles_of(data: bytes) -> tuple[int, int]:
    """Return where a HEIC lists its tiles, and how many it has."""
    place = data.index(b"dimg") + 6
    return place + 2, struct.unpack_from(">H", data, place)[0]


def test_a_heic_that_is_made_of_itself_is_refused() -> None:
    data = heic_of_tiles(photo(300, 200))
    place, count = tiles_of(data)
    looped = data[:place] + struct.pack(">H", 1) * count + data[place + 2 * count :]
    assert refusal(looped) == ("unreadable", "the heic derives its picture too many times")


def test_a_heic_with_fewer_tiles_than_its_grid_has_is_refused() -> None:
    data = heic_of_tiles(photo(300, 200))
    place = data.index(b"idat") + 6
    assert refusal(data[:place] + b"\xff\xff" + data[place + 2 :]) == (
        "unreadable",
        "the heic has 20 tiles instead of 256 x 256",
    )


def test_a_heif_of_another_coding_is_named() -> None:
    data = encode(squares(), "heic").replace(b"hvc1", b"vvc1")
    assert refusal(data) == (
        "unsupported_format",
        "HEIC is not read where the picture is coded as 'vvc1'",
    )


def test_a_jpeg_2000_of_many_channels_or_tiles_is_refused() -> None:
    data = encode(squares(), "jpeg2000", no_jp2=True)
    channels = data[:40] + struct.pack(">H", 6) + data[42:]
    assert refusal(channels) == ("unsupported_format", "a JPEG 2000 of 6 channels is not read")
    tiles = data[:8] + struct.pack(">6I", 9_000, 9_000, 0, 0, 1, 1) + data[32:]
    assert refusal(tiles) == ("unreadable", "the JPEG 2000 has 81,000,000 tiles")


def test_a_decoders_error_never_shows_a_python_object() -> None:
    data = io.BytesIO()
    Image.fromarray(squares()).save(data, "bmp")
    broken = bytearray(data.getvalue())
    broken[28:30] = struct.pack("<H", 5)  # bits of a pixel
    reason, message = refusal(bytes(broken))
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert message == "a bmp is not read (Unsupported BMP pixel depth (5))"
