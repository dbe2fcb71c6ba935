"""Metrics of semantic segmentation, against numbers by hand and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as reference

from eagleray.tasks.segmentation.region_metrics import region_metrics, resampled_region_metrics

pytestmark = pytest.mark.numerical

LABELS = ("soil", "crop", "weed")
CONFUSION = np.array([[50, 3, 2], [4, 30, 0], [0, 6, 5]])


def test_metrics_by_hand() -> None:
    assert region_metrics(CONFUSION, LABELS) == pytest.approx(
        {
            "mean_iou": (50 / 59 + 30 / 43 + 5 / 13) / 3,
            "mean_dice": (100 / 109 + 60 / 73 + 10 / 18) / 3,
            "pixel_accuracy": 85 / 100,
            "mean_accuracy": (50 / 55 + 30 / 34 + 5 / 11) / 3,
            "iou[soil]": 50 / 59,
            "iou[crop]": 30 / 43,
            "iou[weed]": 5 / 13,
            "dice[soil]": 100 / 109,
            "dice[crop]": 60 / 73,
            "dice[weed]": 10 / 18,
            "accuracy[soil]": 50 / 55,
            "accuracy[crop]": 30 / 34,
            "accuracy[weed]": 5 / 11,
        }
    )


def test_metrics_equal_those_of_scikit_learn_on_pixels() -> None:
    generator = np.random.default_rng(0)
    true = generator.integers(0, 3, 5000)
    predicted = np.where(generator.uniform(size=5000) < 0.7, true, generator.integers(0, 3, 5000))
    metrics = region_metrics(reference.confusion_matrix(true, predicted), LABELS)
    expected = reference.jaccard_score(true, predicted, average=None)
    assert [metrics[f"iou[{label}]"] for label in LABELS] == pytest.approx(expected)
    assert metrics["mean_dice"] == pytest.approx(
        reference.f1_score(true, predicted, average="macro")
    )


def test_matrices_of_images_are_summed() -> None:
    parts = np.stack([CONFUSION // 2, CONFUSION - CONFUSION // 2])
    assert region_metrics(parts, LABELS) == region_metrics(CONFUSION, LABELS)


def test_a_label_without_true_pixels_is_in_no_mean() -> None:
    metrics = region_metrics(np.array([[6, 0, 2], [0, 4, 0], [0, 0, 0]]), LABELS)
    assert metrics["mean_iou"] == pytest.approx((6 / 8 + 1) / 2)
    assert metrics["mean_dice"] == pytest.approx((12 / 14 + 1) / 2)
    assert metrics["pixel_accuracy"] == pytest.approx(10 / 12)
    assert "iou[weed]" not in metrics
    assert region_metrics(np.zeros((3, 3)), LABELS) == {}


def test_weights_count_images_as_if_they_were_repeated() -> None:
    generator = np.random.default_rng(1)
    images = generator.integers(0, 9, (5, 3, 3))
    images[0, 2] = 0
    weights = np.array([[1.0, 1, 1, 1, 1], [3, 0, 0, 2, 0], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    found = resampled_region_metrics(images)(weights)
    for row, counts in enumerate(weights[:3].astype(int)):
        expected = region_metrics(np.repeat(images, counts, axis=0), LABELS)
        assert {name: values[row] for name, values in found.items()} == pytest.approx(
            {name: expected[name] for name in found}
        )
    assert all(np.isnan(values[3]) for values in found.values())
