"""Which images a quantization and an export take from a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from eagleray.compression.calibration import list_images
from tests.support.annotated import HEIGHT, WIDTH, write, write_image
from tests.support.images import encode


def test_masks_beside_images_are_not_listed(tmp_path: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:6, 3:9] = 1
    for number in range(3):
        write_image(tmp_path / f"images/{number}.png")
        write(tmp_path / f"instances/{number}.png", encode(Image.fromarray(mask)))
    listed = list_images(str(tmp_path))
    assert sorted(listed.uris) == [str(tmp_path / f"images/{number}.png") for number in range(3)]
    assert set(listed.labels) == {""}


def test_a_plain_folder_is_listed_whole(tmp_path: Path) -> None:
    for name in ("a.png", "more/b.png"):
        write_image(tmp_path / name)
    assert len(list_images(str(tmp_path))) == 2
