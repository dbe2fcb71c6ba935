"""Divides a large image into overlapping tiles, each of which is decoded under the contract.

    tiling = Tiling(side=640, overlap=0.2)
    image = decode_tiles(data, contract, tiling)    # a `DecodedImage` if one tile is enough
    for window in image.windows:
        image.read(window)                          # uint8 (H, W, C) of the contract's shape

The image is decoded once, at its own size; a tile is a window of the upright image that goes
through the contract's resize like an image of that size.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.imaging.contract import ImageContract
from eagleray.imaging.decode import DecodedImage, decode, decode_upright, fit
from eagleray.imaging.upright import upright_size

__all__ = [
    "MAX_SIDE",
    "MIN_SIDE",
    "TiledImage",
    "Tiling",
    "Window",
    "decode_tiles",
    "tile_windows",
    "tiled",
]

MIN_SIDE, MAX_SIDE = 64, 16_384
_MAX_OVERLAP = 0.5

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tiling:
    """How images are divided.

    Attributes:
        side: Side of a tile in pixels of the original.
        overlap: Least share of its side by which a tile overlaps the next one.
        whole: Whether the whole image is read beside its tiles, for objects larger than a tile.

    Raises:
        InputError: If a value is out of range; the message names it.
    """

    side: int
    overlap: float = 0.2
    whole: bool = False

    def __post_init__(self) -> None:
        if not MIN_SIDE <= self.side <= MAX_SIDE:
            raise InputError(
                f"A tile of {self.side:,} pixels is not useful; its side is from {MIN_SIDE} to "
                f"{MAX_SIDE:,} pixels of the original."
            )
        if not 0 <= self.overlap <= _MAX_OVERLAP:
            raise InputError(
                f"Tiles overlap by a share of their side from 0 to {_MAX_OVERLAP:g}, not "
                f"{self.overlap:g}."
            )


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an upright image, in pixels.

    Attributes:
        left: Left edge.
        top: Upper edge.
        width: Width.
        height: Height.
        own: Edges x1, y1, x2, y2 of what belongs to this tile alone: overlaps are cut in the
            middle. Empty for the whole image beside its tiles.
    """

    left: int
    top: int
    width: int
    height: int
    own: tuple[int, int, int, int]

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """The edges x1, y1, x2, y2."""
        return self.left, self.top, self.left + self.width, self.top + self.height


@dataclass(frozen=True, slots=True)
class TiledImage:
    """A decoded image that is read in tiles.

    Attributes:
        pixels: The upright image at its own size, uint8 (height, width, channels).
        contract: The image contract, under which every tile is read.
        windows: The tiles, row by row; the whole image comes last, if it is read too.
    """

    pixels: Pixels
    contract: ImageContract
    windows: tuple[Window, ...]

    @property
    def width(self) -> int:
        """Width of the upright original in pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height of the upright original in pixels."""
        return int(self.pixels.shape[0])

    def read(self, window: Window) -> Pixels:
        """Return a tile as a uint8 array of the contract's shape."""
        x1, y1, x2, y2 = window.edges
        return fit(np.ascontiguousarray(self.pixels[y1:y2, x1:x2]), self.contract)


def decode_tiles(data: bytes, contract: ImageContract, tiling: Tiling) -> DecodedImage | TiledImage:
    """Decode an image for its tiles; one that a single tile covers is decoded as any other.

    Raises:
        BadImageError: If it cannot be decoded. No other exception is raised.
    """
    windows = tile_windows(*upright_size(data, contract), tiling)
    if len(windows) == 1:
        return decode(data, contract)
    return tiled(decode_upright(data, contract), contract, tiling)


def tiled(image: DecodedImage, contract: ImageContract, tiling: Tiling) -> TiledImage:
    """Return an image that `decode_upright` decoded, with its tiles."""
    return TiledImage(image.pixels, contract, tile_windows(image.width, image.height, tiling))


def tile_windows(width: int, height: int, tiling: Tiling) -> tuple[Window, ...]:
    """Return the windows of an image: as few as overlap enough, spread evenly.

    Args:
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.
        tiling: How it is divided.
    """
    across, down = (_spans(side, tiling) for side in (width, height))
    windows = [
        Window(x, y, x_end - x, y_end - y, (own_x[0], own_y[0], own_x[1], own_y[1]))
        for y, y_end, own_y in down
        for x, x_end, own_x in across
    ]
    if tiling.whole and len(windows) > 1:
        windows.append(Window(0, 0, width, height, (0, 0, 0, 0)))
    return tuple(windows)


def _spans(length: int, tiling: Tiling) -> list[tuple[int, int, tuple[int, int]]]:
    """Return start and end of each tile along a side, and start and end of what it owns."""
    side = min(tiling.side, length)
    step = max(1, int(tiling.side * (1 - tiling.overlap)))
    count = 1 + -(-(length - side) // step)
    starts = [round(place) for place in np.linspace(0, length - side, count).tolist()]
    cuts = [(one + side + other) // 2 for one, other in itertools.pairwise(starts)]
    edges = [0, *cuts, length]
    return [
        (start, start + side, (edges[place], edges[place + 1]))
        for place, start in enumerate(starts)
    ]
