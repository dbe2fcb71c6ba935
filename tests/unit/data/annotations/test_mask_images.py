"""PNGs of numbered objects and of numbered classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eagleray.core.errors import InputError
from eagleray.data.annotations.masks import pixels_of
from eagleray.data.labelled import read_objects
from tests.support.annotated import (
    HEIGHT,
    WIDTH,
    annotations_of,
    box,
    instances,
    read_one,
    write,
    write_image,
)
from tests.support.images import encode


def test_each_number_is_an_object_with_its_mask(tmp_path: Path) -> None:
    write_image(tmp_path / "images/1.jpg")
    write(tmp_path / "instances/1.png", encode(instances()))
    first, second = read_one(tmp_path)
    assert box(first) == ("object", 0.0, 0.0, 4.0, 5.0)
    assert box(second) == ("object", 20.0, 10.0, 10.0, 12.0)
    assert second.mask is not None
    assert (pixels_of(second.mask) == (instances() == 300)).all()


def test_the_class_of_numbered_objects_is_that_of_the_list(tmp_path: Path) -> None:
    write_image(tmp_path / "images/1.png")
    write(tmp_path / "instances/1.png", encode(instances()))
    write(tmp_path / "classes.txt", "nucleus\n")
    assert {one.label for one in read_one(tmp_path)} == {"nucleus"}
    write(tmp_path / "classes.txt", "nucleus\ndebris\n")
    with pytest.raises(InputError, match="names 2 classes"):
        read_objects(str(tmp_path))


def classes() -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[0:5, 0:4] = 1
    pixels[10:12, 20:30] = 3
    pixels[20:22, 20:22] = 255
    return pixels


def palette(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels, "P")
    image.putpalette([value for color in range(256) for value in (color, 255 - color, 7)])
    return image


@pytest.mark.parametrize("kind", ["gray", "palette"])
def test_each_class_is_an_object(tmp_path: Path, kind: str) -> None:
    write_image(tmp_path / "images/1.png")
    image = classes() if kind == "gray" else palette(classes())
    write(tmp_path / "masks/1.png", encode(image))
    first, second, ignored = read_one(tmp_path)
    assert box(first) == ("index_1", 0.0, 0.0, 4.0, 5.0)
    assert box(second) == ("index_3", 20.0, 10.0, 10.0, 2.0)
    assert second.mask is not None
    assert (pixels_of(second.mask) == (classes() == 3)).all()
    assert (ignored.crowd, ignored.kind) == (True, "void")
    assert ignored.mask is not None
    assert (pixels_of(ignored.mask) == (classes() == 255)).all()


@pytest.mark.parametrize("first", ["", "background\n", "_Background_\n"])
def test_lines_name_classes_from_1_on(tmp_path: Path, first: str) -> None:
    write_image(tmp_path / "images/1.png")
    write(tmp_path / "masks/1.png", encode(classes()))
    write(tmp_path / "classes.txt", f"{first}road\ncar\nsky\n")
    assert [one.label for one in read_one(tmp_path) if not one.crowd] == ["road", "sky"]


def test_a_class_beyond_the_list_is_counted(tmp_path: Path) -> None:
    write_image(tmp_path / "images/1.png")
    write(tmp_path / "masks/1.png", encode(classes()))
    write(tmp_path / "classes.txt", "road\ncar\n")
    images = read_objects(str(tmp_path), max_invalid=0.5)
    assert images.notes[-1] == (
        "Left out as invalid: 1 label that is not in the list of classes "
        f"({tmp_path}/masks/1.png, number 3)."
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_depths_keep_their_numbers(tmp_path: Path, bits: int) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[3:9, 5:7] = 1
    write_image(tmp_path / "images/1.png")
    gray = _gray_png(pixels, bits)
    write(tmp_path / "masks/1.png", gray)
    (one,) = read_one(tmp_path)
    assert box(one) == ("index_1", 5.0, 3.0, 2.0, 6.0)


def _gray_png(pixels: np.ndarray, bits: int) -> bytes:
    """Return a gray PNG of fewer than 8 bits, which Pillow does not write itself."""
    import zlib

    from tests.support.images import png_chunk, png_file

    places = np.unpackbits(pixels[..., None], axis=2)[..., 8 - bits :].reshape(HEIGHT, -1)
    lines = b"".join(b"\0" + np.packbits(line).tobytes() for line in places)
    data = png_chunk(b"IDAT", zlib.compress(lines))
    return png_file(WIDTH, HEIGHT, data, bits=bits, colour_type=0)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (encode(np.zeros((HEIGHT, WIDTH, 3), np.uint8)), "it has colours (RGB)"),
        (encode(np.zeros((HEIGHT, WIDTH), np.uint8), "jpeg"), "it is a jpeg and not a PNG"),
        (encode(instances())[:80], "damaged"),
        (b"", "empty"),
    ],
)
def test_a_mask_that_cannot_be_read_is_counted(tmp_path: Path, content: bytes, fault: str) -> None:
    for name in ("1", "2"):
        write_image(tmp_path / f"images/{name}.png")
    write(tmp_path / "instances/1.png", encode(instances()))
    write(tmp_path / "instances/2.png", content)
    images = read_objects(str(tmp_path), max_invalid=0.5)
    assert list(annotations_of(images)) == ["1.png"]
    assert "1 annotation that cannot be read" in images.notes[-1]
    assert fault in images.notes[-1]


def test_a_mask_of_another_size_is_counted(tmp_path: Path) -> None:
    write_image(tmp_path / "images/1.png", 41, 30)
    write(tmp_path / "instances/1.png", encode(instances()))
    with pytest.raises(InputError, match="2 masks that have not the size of their images"):
        read_objects(str(tmp_path))
