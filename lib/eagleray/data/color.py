"""Counts how many images of a sample are in colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eagleray.io.read_ahead import read_ahead
from eagleray.reports.thumbnails import decode_square

__all__ = ["count_in_color"]

_SIDE = 32
_SAMPLE = 32  # images
_COLORFUL = 24  # levels between the channels of a pixel; compression of gray images makes a few
_MIN_PIXELS = 0.02  # fraction of an image's pixels


def count_in_color(uris: Sequence[str], *, sample: int = _SAMPLE) -> tuple[int, int]:
    """Count the images in colour among some that are drawn at random.

    Args:
        uris: Locations of images.
        sample: Number of images to draw.

    Returns:
        The number of images in colour, and of those that could be decoded.
    """
    drawn = np.random.default_rng(0).permutation(len(uris))[:sample]
    found = [
        one for one in read_ahead(_is_in_color, [uris[row] for row in drawn]) if one is not None
    ]
    return sum(found), len(found)


def _is_in_color(uri: str) -> bool | None:
    """Return whether an image is in colour; None if it cannot be decoded."""
    pixels = decode_square(uri, _SIDE)
    if pixels is None:
        return None
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    return bool((spread > _COLORFUL).mean() >= _MIN_PIXELS)
