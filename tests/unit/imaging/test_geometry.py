"""Places in a network's input, and where they are in the original."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eagleray.imaging import Exact, ImageContract, ShortestSide, decode
from eagleray.imaging.geometry import Frame, frame_of

CROPPED = ImageContract(resize=ShortestSide(size=64), crop=(48, 48))
PADDED = ImageContract(resize=ShortestSide(size=32), crop=(40, 50))
SQUEEZED = ImageContract(resize=Exact(height=60, width=90))


@pytest.mark.parametrize("contract", [CROPPED, PADDED, SQUEEZED])
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
