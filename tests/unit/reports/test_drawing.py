"""Boxes and masks that are drawn over images."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eagleray.core.errors import BadImageError
from eagleray.imaging import Exact, ImageContract, decode
from eagleray.imaging.upright import upright_size
from eagleray.reports.drawing import draw, drawn_pictures
from eagleray.reports.overlays import picture_contract
from eagleray.tasks.page import Box, Drawing
from eagleray.tasks.segmentation.class_maps import encode_mask
from tests.support.images import encode

GRAY = np.full((60, 100, 3), 128, np.uint8)
PREDICTED, TRUE = Box(10, 20, 40, 30, "cat", 0.9), Box(60, 5, 30, 50, "cat")


def picture_of(data: bytes, drawing: Drawing, *, side: int) -> Image.Image:
    """Draw over an image that is made smaller to a side."""
    contract = ImageContract(resize=Exact(height=1, width=1))
    size = upright_size(data, contract)
    return draw(decode(data, picture_contract(contract, *size, max_side=side)), drawing)


def is_gray(picture: Image.Image, x: int, y: int) -> bool:
    """Whether a pixel has no colour."""
    return bool(np.ptp(np.asarray(picture)[y, x].astype(int)) < 12)


def test_boxes_are_where_the_objects_are_and_labels_are_green() -> None:
    picture = picture_of(encode(GRAY, "PNG"), Drawing((PREDICTED, TRUE)), side=320)
    assert picture.size == (100, 60)  # never larger
    for x, y in ((10, 35), (50, 35), (30, 20), (30, 50)):
        assert not is_gray(picture, x, y)
    red, green, blue = np.asarray(picture)[30, 60]
    assert green > red
    assert green > blue
    assert is_gray(picture, 5, 5)
    assert is_gray(picture, 75, 30)  # inside the other box


def test_boxes_shrink_with_a_picture() -> None:
    large = np.full((600, 1000, 3), 128, np.uint8)
    picture = picture_of(
        encode(large, "PNG"), Drawing((Box(100, 200, 400, 300, "cat", 0.9),)), side=100
    )
    assert picture.size == (100, 60)
    assert not is_gray(picture, 10, 35)
    assert is_gray(picture, 5, 5)


def test_a_mask_colours_all_classes_but_the_first() -> None:
    classes = np.zeros((60, 100), np.uint8)
    classes[:, 50:80] = 1
    classes[:, 80:] = 2
    buffer = io.BytesIO()
    Image.fromarray(classes).save(buffer, "PNG")
    picture = picture_of(encode(GRAY, "PNG"), Drawing(mask=buffer.getvalue()), side=320)
    pixels = np.asarray(picture).astype(int)
    assert (pixels[:, :50] == 128).all()
    assert (pixels[30, 60] != pixels[30, 90]).any()
    assert not is_gray(picture, 60, 30)


def test_a_map_of_many_objects_has_16_bits() -> None:
    numbers = np.zeros((60, 100), np.uint16)
    numbers[:, 50:80] = 258  # the palette has as many colours as its remainder, which is not 0
    picture = picture_of(encode(GRAY, "PNG"), Drawing(mask=encode_mask(numbers)), side=50)
    pixels = np.asarray(picture).astype(int)
    assert (pixels[:, :25] == 128).all()
    assert not is_gray(picture, 30, 15)


def test_labels_have_the_same_colour_on_all_pictures(tmp_path: Path) -> None:
    path = tmp_path / "gray.png"
    path.write_bytes(encode(GRAY, "PNG"))
    (tmp_path / "broken.png").write_bytes(b"no image")
    uris = [str(path), str(path), str(tmp_path / "broken.png")]
    dog, cat = Box(10, 20, 40, 30, "dog", 0.5), Box(10, 20, 40, 30, "cat", 0.5)
    one, both, broken = drawn_pictures(uris, [Drawing((dog,)), Drawing((dog, cat)), Drawing()])
    assert broken is None
    assert one is not None
    assert both is not None
    colors = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))[35, 10]
        for uri in (one, both)
    ]
    # The cat is drawn over the dog, in another colour.
    assert np.abs(colors[0].astype(int) - colors[1].astype(int)).max() > 60


def test_an_image_that_is_none_says_so() -> None:
    with pytest.raises(BadImageError):
        picture_of(b"no image", Drawing(), side=100)
