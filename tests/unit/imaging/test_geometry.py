"""Places in a network's input, and where they are in the original."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from eagleray.imaging import Exact, ImageContract, Letterbox, ShortestSide, decode
from eagleray.imaging.geometry import Frame, frame_of

CROPPED = ImageContract(resize=ShortestSide(size=64), crop=(48, 48))
PADDED = ImageContract(resize=ShortestSide(size=32), crop=(40, 50))
SQUEEZED = ImageContract(resize=Exact(height=60, width=90))
LETTERBOX = ImageContract(resize=Letterbox(height=70, width=90, fill=0))


@pytest.mark.parametrize("contract", [CROPPED, PADDED, SQUEEZED, LETTERBOX])
@settings(max_examples=15, deadline=None)
@given(width=st.integers(60, 300), height=st.integers(60, 300), seed=st.integers(0, 99))
def test_a_bright_spot_is_found_again_in_the_original(
    contract: ImageContract, width: int, height: int, seed: int
) -> None:
    # Near the centre, so that no crop loses it; larger than a pixel of the input.
    draw = np.random.default_rng(seed)
    x, y = (
        int(side / 2 + draw.uniform(-0.1, 0.1) * min(width, height)) for side in (width, height)
    )
    pixels = np.zeros((height, width, 3), np.uint8)
    size = 16
    pixels[y - size // 2 : y + size // 2, x - size // 2 : x + size // 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    image = decode(buffer.getvalue(), contract)
    weights = image.pixels[:, :, 0].astype(float)
    rows, columns = np.indices(weights.shape)
    found_x = (weights * (columns + 0.5)).sum() / weights.sum()
    found_y = (weights * (rows + 0.5)).sum() / weights.sum()
    frame = frame_of(contract, image.width, image.height)
    assert (frame.width, frame.height) == (width, height)
    # The longer side after the resize is cut to whole pixels, and a crop starts at one.
    close = pytest.approx((x, y), abs=1.5 * max(frame.scale_x, frame.scale_y))
    assert frame.to_original(found_x, found_y) == close


def test_a_frame_without_resize_and_crop_changes_nothing() -> None:
    assert Frame(640, 480).to_original(3.5, 7.0) == (3.5, 7.0)


_SIDES = st.integers(1, 400)
_FITS = (
    st.builds(Letterbox, height=_SIDES, width=_SIDES)
    | st.builds(Exact, height=_SIDES, width=_SIDES)
    | st.builds(ShortestSide, size=_SIDES)
)


@settings(max_examples=200, deadline=None)
@given(
    resize=_FITS,
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
def test_a_place_is_found_again_there_and_back(
    resize: Letterbox | Exact | ShortestSide, width: int, height: int, x: float, y: float
) -> None:
    crop = (64, 64) if isinstance(resize, ShortestSide) else None
    contract = ImageContract(resize=resize, crop=crop)
    frame = frame_of(contract, width, height)
    place = (x * width, y * height)
    assert frame.to_original(*frame.to_input(*place)) == pytest.approx(place, abs=0.5)
    if contract.keeps_whole_image:
        across, down = frame.to_input(*place)
        assert -1e-6 <= across <= contract.size[1] + 1e-6
        assert -1e-6 <= down <= contract.size[0] + 1e-6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("resize", "jpeg"),
    [
        (Letterbox(height=80, width=120, fill=0), "exact"),
        (Letterbox(height=80, width=120, fill=0), "scaled"),
        (Exact(height=80, width=120), "exact"),
    ],
    ids=["letterbox", "scaled letterbox", "stretched"],
)
@settings(max_examples=10, deadline=None)
@given(width=st.integers(200, 900), height=st.integers(200, 900), seed=st.integers(0, 99))
def test_a_spot_of_a_turned_and_scaled_photograph_is_where_the_frame_says(
    resize: Letterbox | Exact,
    orientation: int,
    jpeg: Literal["exact", "scaled"],
    width: int,
    height: int,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    side = 40
    left, top = int(draw.integers(0, width - side)), int(draw.integers(0, height - side))
    stored = np.zeros((height, width, 3), np.uint8)
    stored[top : top + side, left : left + side] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "jpeg", quality=95, exif=exif)
    contract = ImageContract(resize=resize, jpeg=jpeg)
    image = decode(buffer.getvalue(), contract)
    # Where Pillow's own transposition puts the spot.
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))))
    rows, columns = np.nonzero(upright[:, :, 0] > 127)
    place = (columns.mean() + 0.5, rows.mean() + 0.5)
    frame = frame_of(contract, image.width, image.height)
    inner = image.pixels[:, :, 0].astype(float)
    down, across = np.indices(inner.shape)
    weights = np.where(inner > 20, inner, 0)
    found = (
        (weights * (across + 0.5)).sum() / weights.sum(),
        (weights * (down + 0.5)).sum() / weights.sum(),
    )
    assert frame.to_input(*place) == pytest.approx(found, abs=0.5)
