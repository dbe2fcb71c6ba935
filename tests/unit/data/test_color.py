"""Images in colour are told from gray ones, however they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from eagleray.data.color import count_in_color


def write(file: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> str:
    Image.fromarray(pixels).save(file)
    return str(file)


def test_only_images_with_colour_in_them_are_counted(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    gray = generator.integers(0, 256, (60, 80), dtype=np.uint8)
    as_rgb = np.repeat(gray[:, :, None], 3, axis=2)
    red_spot = as_rgb.copy()
    red_spot[:20, :20] = (220, 30, 30)
    uris = [
        write(tmp_path / "gray.png", gray),
        write(tmp_path / "gray.jpg", as_rgb),
        write(tmp_path / "spot.png", red_spot),
        write(tmp_path / "noise.jpg", generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)),
        str(tmp_path / "none.png"),
    ]
    assert count_in_color(uris) == (2, 4)
    assert count_in_color(uris[:2]) == (0, 2)
    assert count_in_color([]) == (0, 0)
    assert count_in_color(uris[2:4] * 50, sample=7) == (7, 7)
