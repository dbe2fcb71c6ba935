"""Heat maps lie over the places of the upright original that they are of."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from eagleray.imaging import ShortestSide, decode, named_contract
from eagleray.imaging.geometry import frame_of
from eagleray.reports.overlays import encode_picture, overlay, picture_contract

CONTRACT = named_contract("whole-image", size=32).model_copy(
    update={"resize": ShortestSide(size=40), "crop": (32, 32)}
)


def redness(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = pixels[..., 0].astype(np.int64) - pixels[..., 2]
    return found


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_heat_is_where_the_crop_was(factor: float) -> None:
    # 200 x 100 is resized to 80 x 40, and the crop takes columns 24 to 56 and rows 4 to 36 of it.
    frame = frame_of(CONTRACT, 200, 100)
    heat = np.zeros((32, 32), np.float32)
    heat[16:, 16:] = 1  # right and below of the middle of the original, up to (140, 90)
    picture = np.full((round(100 * factor), round(200 * factor), 1), 200, np.uint8)
    drawn = overlay(picture, heat, frame)
    assert drawn.shape == (*picture.shape[:2], 3)
    hot = np.argwhere(redness(drawn) > 20) / factor
    assert hot.min(axis=0) == pytest.approx([50, 100], abs=4)
    assert hot.max(axis=0) == pytest.approx([89, 139], abs=4)
    seen = np.argwhere((drawn != 100).any(axis=2)) / factor
    assert seen.min(axis=0) == pytest.approx([10, 60], abs=2)
    assert seen.max(axis=0) == pytest.approx([89, 139], abs=2)
    assert drawn[0, 0].tolist() == [100, 100, 100]  # darkened
    unheated = drawn[round(30 * factor), round(70 * factor)]
    assert unheated.tolist() == [200, 200, 200]


def test_a_padded_image_is_drawn_without_its_padding() -> None:
    contract = CONTRACT.model_copy(update={"resize": ShortestSide(size=16)})
    frame = frame_of(contract, 16, 16)
    assert frame.left == -8
    heat = np.zeros((32, 32), np.float32)
    heat[:, :8] = 1  # all of it in the padding
    drawn = overlay(np.full((16, 16, 3), 200, np.uint8), heat, frame)
    assert (redness(drawn)[:, 2:] == 0).all()


def test_a_picture_is_whole_and_upright_and_at_most_so_large() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, :60] = 255
    Image.fromarray(pixels).save(buffer, format="PNG", exif=exif)
    decoded = decode(buffer.getvalue(), CONTRACT)
    assert (decoded.width, decoded.height) == (60, 120)
    small = picture_contract(CONTRACT, decoded.width, decoded.height, max_side=40)
    drawn = decode(buffer.getvalue(), small).pixels
    assert drawn.shape == (40, 20, 3)
    assert (drawn[5] > 250).all()
    assert (drawn[-5] < 5).all()
    whole = picture_contract(CONTRACT, decoded.width, decoded.height, max_side=400)
    assert decode(buffer.getvalue(), whole).pixels.shape == (120, 60, 3)


def test_a_picture_is_encoded_without_loss_as_png() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    found = Image.open(io.BytesIO(encode_picture(pixels, "PNG")))
    assert (np.asarray(found) == pixels).all()
