"""Masks from polygons, runs and arrays agree with pixels and with COCO's tools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eagleray.data.annotations.masks import (
    box_of,
    mask_of_pixels,
    mask_of_polygons,
    mask_of_runs,
    masks_of_indices,
    pixels_of,
)

INDICES = st.tuples(st.integers(1, 20), st.integers(1, 20)).flatmap(
    lambda shape: arrays(np.uint16, shape, elements=st.integers(0, 4) | st.just(65535))
)


@given(INDICES)
def test_the_mask_of_each_number_has_its_pixels(indices: np.ndarray) -> None:
    masks = masks_of_indices(indices)
    assert list(masks) == sorted(set(indices.ravel().tolist()))
    for number, mask in masks.items():
        assert (pixels_of(mask) == (indices == number)).all()
        assert mask == mask_of_pixels(indices == number)


def test_a_rectangle_is_the_same_as_polygon_runs_and_pixels() -> None:
    pixels = np.zeros((6, 8), bool)
    pixels[1:4, 2:7] = True
    mask = mask_of_pixels(pixels)
    assert mask_of_polygons([[2, 1, 7, 1, 7, 4, 2, 4]], 6, 8) == mask
    assert mask_of_runs([13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 8], 6, 8) == mask
    assert box_of(mask) == (2.0, 1.0, 5.0, 3.0)


def test_polygons_are_united() -> None:
    mask = mask_of_polygons([[0, 0, 2, 0, 2, 2, 0, 2], [4, 0, 6, 0, 6, 2, 4, 2]], 3, 6)
    assert pixels_of(mask).sum(axis=0).tolist() == [2, 2, 0, 0, 2, 2]


@pytest.mark.parametrize(
    ("polygon", "fault"),
    [
        ([0, 0, 1, 1, 2], "an x without its y"),
        ([0, 0, 1e9, 0, 1, 1], "far outside"),
        ([0, 0, float("nan"), 0, 1, 1], "far outside"),
        ([0.0] * 200_002, "more than 100,000 points"),
    ],
)
def test_polygons_that_cannot_be_drawn_are_refused(polygon: list[float], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        mask_of_polygons([polygon], 10, 10)


@pytest.mark.parametrize("runs", [[], [-1, 61], [59], [61], [2**40]])
def test_runs_of_another_image_are_refused(runs: list[int]) -> None:
    with pytest.raises(ValueError, match="6 x 10 pixels"):
        mask_of_runs(runs, 6, 10)


def test_arrays_of_too_many_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"20,000 different numbers"):
        masks_of_indices(np.arange(20_000, dtype=np.uint16).reshape(100, 200))
