"""A picture of four squares, red, green, blue and yellow, which show any decoding mistake."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eagleray.core.errors import BadImageError
from eagleray.imaging import FORMATS, Exact, ImageContract, decode
from tests.support.images import (
    Pixels,
)

COLORS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 220, 40))
WIDTH, HEIGHT = 64, 48


def squares() -> Pixels:
    """Return the four squares, uint8 (48, 64, 3)."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for index, color in enumerate(COLORS):
        top, left = HEIGHT // 2 * (index // 2), WIDTH // 2 * (index % 2)
        pixels[top : top + HEIGHT // 2, left : left + WIDTH // 2] = color
    return pixels


def pixels_of(data: bytes, **changes: Any) -> Pixels:
    """Decode without scaling."""
    if changes.get("color") == "gray":
        changes |= {"mean": (0.5,), "std": (0.5,)}
    under = ImageContract(
        resize=Exact(height=HEIGHT, width=WIDTH), **{"formats": FORMATS, **changes}
    )
    return decode(data, under).pixels


def refusal(data: bytes, **changes: Any) -> tuple[str, str]:
    """Return the reason and the message of an image that is rejected."""
    with pytest.raises(BadImageError) as caught:
        pixels_of(data, **changes)
    return caught.value.reason.value, caught.value.message


def shows_the_squares(data: bytes, **changes: Any) -> bool:
    pixels = pixels_of(data, **changes)
    centers = [pixels[y, x] for y, x in ((12, 16), (12, 48), (36, 16), (36, 48))]
    return bool(np.abs(np.array(centers).astype(int) - COLORS).max() < 14)
