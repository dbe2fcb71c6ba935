"""Panoptic quality, against numbers by hand and torchmetrics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchmetrics.functional.detection import panoptic_quality

from eagleray.core.errors import InputError
from eagleray.tasks.segmentation.panoptic_metrics import (
    VOID,
    PanopticCounts,
    Segmentation,
    count_segments,
    panoptic_metrics,
    resampled_panoptic_metrics,
)

pytestmark = pytest.mark.numerical

LABELS = ("road", "car", "tree")
ROAD, CAR, TREE = range(3)


def row(*runs: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Return a map of one row, from identifiers and how many pixels each has."""
    return np.repeat([one for one, _ in runs], [count for _, count in runs])[None]


def counts_of(predicted: Segmentation, true: Segmentation) -> dict[str, list[float]]:
    counts = count_segments(predicted, true, len(LABELS))
    return {
        "iou": counts.iou.tolist(),
        "matched": counts.matched.tolist(),
        "false_positives": counts.false_positives.tolist(),
        "false_negatives": counts.false_negatives.tolist(),
    }


def test_quality_by_hand() -> None:
    true = Segmentation(row((1, 10), (2, 6), (3, 4)), {1: ROAD, 2: CAR, 3: CAR})
    predicted = Segmentation(row((7, 8), (8, 8), (9, 4)), {7: ROAD, 8: CAR, 9: TREE})
    # road: 8 of 10 shared; the first car: 6 of 8; the second one is taken for a tree.
    assert counts_of(predicted, true) == {
        "iou": [0.8, 0.75, 0],
        "matched": [1, 1, 0],
        "false_positives": [0, 0, 1],
        "false_negatives": [0, 1, 0],
    }
    counts = PanopticCounts.stack([count_segments(predicted, true, 3)])
    assert panoptic_metrics(counts, LABELS) == pytest.approx(
        {
            "pq": (0.8 + 0.75 / 1.5 + 0) / 3,
            "sq": (0.8 + 0.75 + 0) / 3,
            "rq": (1 + 1 / 1.5 + 0) / 3,
            "pq[road]": 0.8,
            "pq[car]": 0.5,
            "sq[road]": 0.8,
            "sq[car]": 0.75,
            "rq[road]": 1,
            "rq[car]": 1 / 1.5,
        }
    )


def test_half_of_the_union_is_no_match() -> None:
    true = Segmentation(row((1, 4), (2, 4)), {1: ROAD, 2: CAR})
    predicted = Segmentation(row((1, 8)), {1: ROAD})
    assert counts_of(predicted, true) == {
        "iou": [0, 0, 0],
        "matched": [0, 0, 0],
        "false_positives": [1, 0, 0],
        "false_negatives": [1, 1, 0],
    }


def test_void_pixels_of_the_truth_do_not_count_for_a_prediction() -> None:
    true = Segmentation(row((1, 6), (VOID, 6), (2, 4)), {1: ROAD, 2: CAR})
    # road: 6 shared of 6, as 4 pixels are void; a tree that is mostly void; a car of void and car.
    predicted = Segmentation(row((1, 10), (5, 2), (6, 1), (VOID, 3)), {1: ROAD, 5: TREE, 6: CAR})
    assert counts_of(predicted, true) == {
        "iou": [1, 0, 0],
        "matched": [1, 0, 0],
        "false_positives": [0, 1, 0],
        "false_negatives": [0, 1, 0],
    }


def random_maps(seed: int, *, void: bool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return two maps (24, 24) of blocks, the second one with some of them changed."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0 if void else 1, 9, (4, 4))
    changed = np.where(generator.uniform(size=(4, 4)) < 0.3, generator.integers(1, 9), blocks)
    true, predicted = (np.kron(one, np.ones((6, 6), int)) for one in (blocks, changed))
    return np.roll(predicted, generator.integers(0, 3), axis=1), true


def test_quality_equals_that_of_torchmetrics() -> None:
    labels = {one: (one - 1) % 3 for one in range(1, 9)}
    for seed in range(50):
        predicted, true = random_maps(seed, void=False)
        counts = count_segments(Segmentation(predicted, labels), Segmentation(true, labels), 3)
        found = panoptic_metrics(PanopticCounts.stack([counts]), LABELS)
        pairs = [
            torch.from_numpy(np.stack([(one - 1) % 3, one], axis=-1))[None]
            for one in (predicted, true)
        ]
        expected = panoptic_quality(pairs[0], pairs[1], things={0, 1, 2}, stuffs=set())
        assert found["pq"] == pytest.approx(expected.item()), seed


def test_resamples_count_images_as_if_they_were_repeated() -> None:
    labels = {one: (one - 1) % 3 for one in range(1, 9)}
    images = []
    for seed in range(4):
        predicted, true = random_maps(seed, void=True)
        images.append(
            count_segments(Segmentation(predicted, labels), Segmentation(true, labels), 3)
        )
    weights = np.array([[1.0, 1, 1, 1], [0, 3, 0, 1], [0, 0, 0, 0]])
    found = resampled_panoptic_metrics(PanopticCounts.stack(images))(weights)
    for place, chosen in enumerate(([0, 1, 2, 3], [1, 1, 1, 3])):
        stacked = PanopticCounts.stack([images[index] for index in chosen])
        expected = panoptic_metrics(stacked, LABELS)
        assert {name: values[place] for name, values in found.items()} == pytest.approx(
            {name: expected[name] for name in ("pq", "sq", "rq")}
        )
    assert all(np.isnan(values[2]) for values in found.values())


def test_images_without_segments_have_no_quality() -> None:
    empty = Segmentation(np.zeros((4, 4), np.uint8), {})
    counts = count_segments(empty, empty, 3)
    assert panoptic_metrics(PanopticCounts.stack([counts]), LABELS) == {}


def test_maps_of_other_sizes_and_segments_without_label_are_refused() -> None:
    with pytest.raises(InputError, match="maps of the same size"):
        count_segments(
            Segmentation(np.ones((2, 2), int), {1: 0}),
            Segmentation(np.ones((2, 3), int), {1: 0}),
            3,
        )
    one = Segmentation(np.full((2, 2), 5), {5: 3})
    with pytest.raises(InputError, match="Segment 5 has label index 3"):
        count_segments(one, one, 3)
    with pytest.raises(InputError, match="Segment 5 has no label"):
        count_segments(Segmentation(one.ids, {}), one, 3)
