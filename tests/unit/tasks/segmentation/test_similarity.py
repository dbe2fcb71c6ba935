"""How alike two segmentations are: Dice of class maps, and matched regions with scores."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.tasks.segmentation.similarity import (
    ScoredRegions,
    dice_of_maps,
    similarity_of_regions,
)


def test_dice_counts_the_pixels_that_are_not_background() -> None:
    one = np.array([[0, 0, 1, 1], [0, 2, 2, 2]], np.uint8)
    assert dice_of_maps(one, one) == 1
    other = np.array([[0, 1, 1, 1], [0, 1, 2, 2]], np.uint8)
    assert dice_of_maps(one, other) == pytest.approx(2 * 4 / (5 + 6))
    nothing = np.zeros((2, 4), np.uint8)
    assert dice_of_maps(nothing, nothing) == 1
    assert dice_of_maps(nothing, one) == 0
    assert dice_of_maps(one, one[:, :2]) == 0


def regions(*columns: slice, labels: str = "aab", scores: tuple[float, ...] = ()) -> ScoredRegions:
    numbers = np.zeros((4, 20), np.uint16)
    for number, one in enumerate(columns, start=1):
        numbers[:, one] = number
    names = tuple(labels[: len(columns)])
    return ScoredRegions(numbers, names, scores or (0.9,) * len(columns))


THREE = regions(slice(0, 4), slice(5, 9), slice(10, 20))


def test_the_same_regions_in_another_order_are_alike() -> None:
    assert similarity_of_regions(THREE, THREE) == 1
    moved = regions(slice(10, 20), slice(0, 4), slice(5, 9), labels="baa")
    assert similarity_of_regions(THREE, moved) == 1


def test_pixels_labels_scores_and_missing_regions_count() -> None:
    cut = regions(slice(0, 3), slice(5, 9), slice(10, 20))
    assert similarity_of_regions(THREE, cut) == pytest.approx((3 / 4 + 2) / 3)
    renamed = regions(slice(0, 4), slice(5, 9), slice(10, 20), labels="abb")
    assert similarity_of_regions(THREE, renamed) == pytest.approx(2 / 3)
    unsure = regions(slice(0, 4), slice(5, 9), slice(10, 20), scores=(0.9, 0.6, 0.9))
    assert similarity_of_regions(THREE, unsure) == pytest.approx((0.7 + 2) / 3)
    missing = regions(slice(0, 4), slice(5, 9))
    assert similarity_of_regions(THREE, missing) == pytest.approx(2 / 2.5)
    half = regions(slice(0, 2), slice(5, 9), slice(10, 20))  # no more than half is another object
    assert similarity_of_regions(THREE, half) == pytest.approx(2 / 3)


def test_nothing_is_like_nothing() -> None:
    assert similarity_of_regions(regions(), regions()) == 1
    assert similarity_of_regions(regions(), THREE) == 0
    smaller = ScoredRegions(THREE.numbers[:2], THREE.labels, THREE.scores)
    assert similarity_of_regions(smaller, THREE) == 0
