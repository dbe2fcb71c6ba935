"""Sizes of upright images, read without their pixels, are those of the decoder."""

from __future__ import annotations

import pytest

from eagleray.core.errors import BadImageError
from eagleray.imaging import FORMATS, decode, named_contract
from eagleray.imaging.upright import upright_size
from tests.support.images import encode, oriented, photo
from tests.support.mutants import sources

ANY = named_contract("whole-image", formats=FORMATS)


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_size_of_an_image(file_format: str) -> None:
    assert upright_size(encode(photo(40, 30), file_format), ANY) == (40, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["jpeg", "png", "webp", "tiff"])
def test_orientation_turns_the_size(file_format: str, orientation: int) -> None:
    data = oriented(file_format, orientation, width=23, height=14)
    assert upright_size(data, ANY) == ((14, 23) if orientation >= 5 else (23, 14))


def test_the_header_of_a_jpeg_is_enough() -> None:
    data = oriented("jpeg", 6, width=230, height=140)
    assert upright_size(data[: len(data) // 2], ANY) == (140, 230)


def test_it_agrees_with_the_decoder() -> None:
    num_equal = 0
    for data in sources():
        try:
            image = decode(data, ANY)
        except BadImageError:
            continue
        assert upright_size(data, ANY) == (image.width, image.height)
        num_equal += 1
    assert num_equal > 25


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(BadImageError):
        upright_size(b"not an image", ANY)
