"""Tiles cover the image with enough overlap, own each pixel once, and are read as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.core.errors import BadImageError, InputError, Reason
from eagleray.imaging import DecodedImage, decode, named_contract
from eagleray.imaging.decode import decode_upright
from eagleray.imaging.sandbox import DecodeSandbox
from eagleray.imaging.tiles import TiledImage, Tiling, decode_tiles, tile_windows
from tests.support.images import encode, oriented, photo

CONTRACT = named_contract("letterbox", size=64)
TILING = Tiling(64, 0.25)


@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    side=st.integers(64, 500),
    overlap=st.floats(0, 0.5),
)
def test_tiles_cover_the_image_and_own_each_pixel_once(
    width: int, height: int, side: int, overlap: float
) -> None:
    owners = np.zeros((height, width), np.uint8)
    windows = tile_windows(width, height, Tiling(side, overlap))
    for window in windows:
        x1, y1, x2, y2 = window.own
        left, top, right, bottom = window.edges
        assert left <= x1 < x2 <= right
        assert top <= y1 < y2 <= bottom
        assert (window.width, window.height) == (min(side, width), min(side, height))
        owners[y1:y2, x1:x2] += 1
    assert (owners == 1).all()
    lefts = sorted({window.left for window in windows})
    gaps = np.diff(lefts)
    assert (gaps <= int(side * (1 - overlap)) + 1).all()


def test_the_whole_image_comes_last_if_it_is_read_too() -> None:
    windows = tile_windows(100, 64, Tiling(64, 0.25, whole=True))
    assert [window.edges for window in windows] == [
        (0, 0, 64, 64),
        (36, 0, 100, 64),
        (0, 0, 100, 64),
    ]
    assert windows[0].own == (0, 0, 50, 64)
    assert len(tile_windows(64, 64, Tiling(64, 0.25, whole=True))) == 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_a_tile_is_a_part_of_the_upright_image(image_format: str, orientation: int) -> None:
    data = oriented(image_format, orientation, width=150, height=90)
    whole = decode_upright(data, CONTRACT)
    image = decode_tiles(data, CONTRACT, TILING)
    assert isinstance(image, TiledImage)
    upright = (150, 90) if orientation < 5 else (90, 150)
    assert (image.width, image.height) == upright == (whole.width, whole.height)
    for window in image.windows:
        x1, y1, x2, y2 = window.edges
        assert (image.read(window) == whole.pixels[y1:y2, x1:x2]).all()


def test_a_larger_tile_goes_through_the_resize_of_the_contract() -> None:
    data = encode(photo(256, 128), "png")
    image = decode_tiles(data, CONTRACT, Tiling(128, 0.0))
    assert isinstance(image, TiledImage)
    half = encode(photo(256, 128)[:, :128], "png")
    assert (image.read(image.windows[0]) == decode(half, CONTRACT).pixels).all()


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_an_image_of_one_tile_is_decoded_as_without_tiles(image_format: str) -> None:
    data = encode(photo(64, 50), image_format)
    image = decode_tiles(data, CONTRACT, TILING)
    assert isinstance(image, DecodedImage)
    assert (image.pixels == decode(data, CONTRACT).pixels).all()


def test_a_sandbox_decodes_the_same_at_the_own_size() -> None:
    data = encode(photo(150, 90), "jpeg")
    with DecodeSandbox(CONTRACT, seconds=60, memory_bytes=2**30, whole=True) as sandbox:
        image = sandbox.decode(data)
    assert (image.width, image.height) == (150, 90)
    assert (image.pixels == decode_upright(data, CONTRACT).pixels).all()


def test_a_damaged_image_is_a_bad_image() -> None:
    data = encode(photo(150, 90), "jpeg")
    with pytest.raises(BadImageError) as caught:
        decode_tiles(data[: len(data) // 2], CONTRACT, TILING)
    assert caught.value.reason in (Reason.TRUNCATED, Reason.UNREADABLE)
    small = CONTRACT.model_copy(update={"max_pixels": 1000})
    with pytest.raises(BadImageError, match="the limit is 1,000 in all"):
        decode_tiles(data, small, TILING)


@pytest.mark.parametrize(
    ("side", "overlap", "message"),
    [(63, 0.2, "from 64 to 16,384"), (64, 0.6, "from 0 to 0.5, not 0.6")],
)
def test_tiles_that_are_not_useful_are_refused(side: int, overlap: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tiling(side, overlap)
