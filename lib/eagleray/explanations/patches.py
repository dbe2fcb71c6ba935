"""Finds the strongest patches: where, among many images, the channels behind a label are strongest.

patches = StrongestPatches()
patches.add(image, explanation)             # for each image
patches.of("cat")                           # the channels that matter most to a label
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from eagleray.imaging import DecodedImage
from eagleray.inference.explain import Explanation

__all__ = ["Channel", "Patch", "StrongestPatches"]

_CHANNELS_PER_LABEL = 4
_PATCHES_PER_CHANNEL = 8
_CELLS = 3  # of the feature map that a patch is wide and high


@dataclass(frozen=True)
class Patch:
    """A place where a channel is strong.

    Attributes:
        image: Position of the image among those added.
        strength: Value of the channel.
        pixels: The surroundings in the network's input, uint8 array (height, width, channels).
    """

    image: int
    strength: float
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Channel:
    """A channel of the last feature map that matters to a label.

    Attributes:
        number: Number of the channel.
        share: Share of the evidence that all channels add to the label, on average over its images.
        patches: Where the channel is strongest, the strongest first; one place in an image.
    """

    number: int
    share: float
    patches: tuple[Patch, ...]


class StrongestPatches:
    """Remembers of each image where each channel is strongest."""

    def __init__(self) -> None:
        self._pixels: list[npt.NDArray[np.uint8]] = []
        self._grids: list[tuple[int, int]] = []
        self._strengths: list[npt.NDArray[np.float32]] = []
        self._cells: list[npt.NDArray[np.int64]] = []
        self._totals: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: dict[str, int] = {}

    def add(self, image: DecodedImage, explanation: Explanation) -> None:
        """Add an image with the explanation of its label."""
        flat = explanation.channels.reshape(len(explanation.channels), -1)
        self._pixels.append(image.pixels)
        self._grids.append(explanation.channels.shape[1:])
        self._strengths.append(flat.max(axis=1))
        self._cells.append(flat.argmax(axis=1))
        label, found = explanation.label, explanation.contributions.astype(np.float64)
        self._totals[label] = self._totals.get(label, np.zeros_like(found)) + found
        self._counts[label] = self._counts.get(label, 0) + 1

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of images by the label that was explained, the most frequent first."""
        by_count = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return MappingProxyType(dict(by_count))

    def of(self, label: str) -> list[Channel]:
        """Return the channels that add most to a label, and where they are strongest in any image.

        Channels that add nothing are left out.
        """
        added = np.maximum(self._totals[label], 0)
        order = np.argsort(-added, kind="stable")[:_CHANNELS_PER_LABEL]
        return [
            Channel(int(number), float(added[number] / added.sum()), self._strongest(int(number)))
            for number in order
            if added[number] > 0
        ]

    def _strongest(self, channel: int) -> tuple[Patch, ...]:
        strengths = np.array([values[channel] for values in self._strengths])
        order = np.argsort(-strengths, kind="stable")[:_PATCHES_PER_CHANNEL]
        return tuple(
            Patch(int(row), float(strengths[row]), self._crop(int(row), channel))
            for row in order
            if strengths[row] > 0
        )

    def _crop(self, row: int, channel: int) -> npt.NDArray[np.uint8]:
        """Return a few cells around the strongest one, moved inside of the input."""
        pixels, grid = self._pixels[row], self._grids[row]
        place = np.unravel_index(self._cells[row][channel], grid)
        spans = [
            _span(int(index), count, length)
            for index, count, length in zip(place, grid, pixels.shape[:2], strict=True)
        ]
        return pixels[slice(*spans[0]), slice(*spans[1])]


def _span(index: int, count: int, length: int) -> tuple[int, int]:
    """Return the pixels [first, last) of the cells around one of `count` cells along an axis."""
    size = min(length, round(_CELLS * length / count))
    middle = (index + 0.5) * length / count
    first = min(max(0, round(middle - size / 2)), length - size)
    return first, first + size
