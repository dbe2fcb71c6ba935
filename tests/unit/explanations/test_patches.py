"""The strongest patches of the channels that matter to a label."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.explanations.patches import StrongestPatches
from eagleray.imaging import DecodedImage
from eagleray.imaging.geometry import Frame
from eagleray.inference.explain import Explanation


def add(
    patches: StrongestPatches, label: str, channels: np.ndarray, weights: list[float], level: int
) -> None:
    """Add an image of 40 x 40 pixels of one level, with a feature map of 8 x 8."""
    pixels = np.full((40, 40, 1), level, np.uint8)
    pixels[0, 0] = 255
    heat = np.zeros((40, 40), np.float32)
    found = Explanation(
        label, heat, Frame(40, 40), channels.astype(np.float32), np.array(weights, np.float32)
    )
    patches.add(DecodedImage(pixels, 40, 40), found)


def spot(channel: int, row: int, column: int, strength: float) -> np.ndarray:
    channels = np.zeros((3, 8, 8))
    channels[channel, row, column] = strength
    return channels


def test_channels_are_ordered_by_what_they_add_and_patches_by_strength() -> None:
    patches = StrongestPatches()
    weights = [1.0, 2.0, -1.0]
    add(patches, "cat", spot(0, 4, 4, 3.0) + spot(1, 0, 0, 3.0), weights, level=10)
    add(patches, "cat", spot(1, 7, 7, 5.0) + spot(2, 3, 3, 9.0), weights, level=20)
    add(patches, "dog", spot(2, 3, 3, 9.0), [0.0, 0.0, 1.0], level=30)
    assert dict(patches.counts) == {"cat": 2, "dog": 1}
    first, second = patches.of("cat")
    assert (first.number, second.number) == (1, 0)  # channel 2 speaks against it
    # (2·3 + 2·5) / 64 and (1·3) / 64
    assert [first.share, second.share] == pytest.approx([16 / 19, 3 / 19])
    assert [(one.image, one.strength) for one in first.patches] == [(1, 5.0), (0, 3.0)]
    (dog,) = patches.of("dog")
    assert [one.image for one in dog.patches] == [1, 2]


def test_a_patch_is_three_cells_around_the_place_and_inside_of_the_image() -> None:
    patches = StrongestPatches()
    add(patches, "cat", spot(0, 0, 0, 3.0), [1.0, 0.0, 0.0], level=10)
    add(patches, "cat", spot(0, 4, 4, 2.0), [1.0, 0.0, 0.0], level=10)
    (channel,) = patches.of("cat")
    corner, middle = channel.patches
    assert corner.pixels.shape == (15, 15, 1)  # a cell is 5 pixels wide
    assert corner.pixels[0, 0, 0] == 255
    assert middle.pixels.shape == (15, 15, 1)
    assert (middle.pixels == 10).all()


def test_a_label_that_no_channel_speaks_for_has_none() -> None:
    patches = StrongestPatches()
    add(patches, "cat", spot(0, 0, 0, 3.0), [-1.0, 0.0, 0.0], level=10)
    assert patches.of("cat") == []
