"""COCO's metrics against pycocotools, and those of resamples against both."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from eagleray.tasks.detection.boxes import CROWD, OBJECT, detection_set
from eagleray.tasks.detection.coco_metrics import COCO_METRICS, coco_metrics
from eagleray.tasks.detection.resampling import (
    average_precision_of_resamples,
    resampled_average_precision,
)
from eagleray.tasks.segmentation.mask_observations import mask_detection_set
from tests.support.detections import (
    LABELS,
    Row,
    data_of,
    masks_of,
    observed_masks,
    padded,
    pycocotools_metrics,
    random_detections,
)

pytestmark = pytest.mark.numerical

SEEDS = range(200)
BOX = (10.0, 10.0, 50.0, 60.0)


def defined(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value > -1}


def test_random_sets_have_crowds_ties_and_empty_images() -> None:
    sets = [random_detections(seed) for seed in SEEDS]
    scores = [outputs[:, :, 4] for outputs, _ in sets]
    assert sum((targets[:, 1:, 5] == CROWD).any() for _, targets in sets) > 150
    assert sum((~(kept > 0).any(axis=1)).any() for kept in scores) > 100
    assert sum((~targets[:, 1:, 5].any(axis=1)).any() for _, targets in sets) > 50
    tied = [len(np.unique(kept[kept > 0])) < (kept > 0).sum() for kept in scores]
    assert sum(tied) > 50


def test_metrics_of_boxes_equal_those_of_pycocotools() -> None:
    for seed in SEEDS:
        outputs, targets = random_detections(seed)
        found = coco_metrics(detection_set(outputs, targets, len(LABELS)), LABELS)
        expected = defined(pycocotools_metrics(outputs, targets))
        assert found == pytest.approx(expected, abs=1e-6), seed


def test_metrics_of_masks_equal_those_of_pycocotools() -> None:
    for seed in SEEDS:
        outputs, targets = random_detections(seed)
        masks = masks_of(outputs, targets)
        data = mask_detection_set(*observed_masks(outputs, targets, masks), len(LABELS))
        expected = defined(pycocotools_metrics(outputs, targets, masks))
        assert coco_metrics(data, LABELS) == pytest.approx(expected, abs=1e-6), seed
        resampled = average_precision_of_resamples(data)(np.ones((1, len(outputs))))
        for name in ("map", "map_50"):
            assert resampled[name][0] == pytest.approx(expected.get(name, np.nan), nan_ok=True)


def test_unweighted_resamples_equal_pycocotools() -> None:
    for seed in SEEDS:
        outputs, targets = random_detections(seed)
        expected = pycocotools_metrics(outputs, targets)
        resampled = resampled_average_precision(outputs, targets, len(LABELS))
        found = resampled(np.ones((2, len(outputs))))
        for name in ("map", "map_50"):
            value = expected[name] if expected[name] > -1 else np.nan
            assert found[name] == pytest.approx([value, value], abs=1e-6, nan_ok=True), seed


def test_of_an_image_and_label_the_best_hundred_detections_count() -> None:
    far = [(200.0, 100.0, 210.0 + index, 110.0, 0.9, 0.0) for index in range(100)]
    hit = (*BOX, 0.5, 0.0)
    outputs, targets = padded([([*far, hit], [(*BOX, 0.0, OBJECT)])])
    data = detection_set(outputs, targets, len(LABELS))
    assert coco_metrics(data, LABELS)["map"] == 0
    ones = np.ones((1, 1))
    assert resampled_average_precision(outputs, targets, 3)(ones)["map"].tolist() == [0]
    outputs = outputs[:, 1:]
    assert coco_metrics(detection_set(outputs, targets, 3), LABELS)["map"] == pytest.approx(0.01)
    found = resampled_average_precision(outputs, targets, 3)(ones)["map"]
    assert found == pytest.approx([0.01])


def test_detections_beyond_the_hundred_are_no_false_positives() -> None:
    far = [(200.0, 100.0, 210.0 + index, 110.0, 0.9, 0.0) for index in range(101)]
    images: list[tuple[list[Row], list[Row]]] = [
        (far, []),
        ([(*BOX, 0.5, 0.0)], [(*BOX, 0.0, OBJECT)]),
    ]
    found = resampled_average_precision(*padded(images), 3)(np.ones((1, 2)))
    assert found["map"] == pytest.approx([1 / 101])
    assert coco_metrics(data_of(images), LABELS)["map"] == pytest.approx(1 / 101)


def test_of_objects_with_the_same_overlap_the_last_one_is_taken() -> None:
    first, second = (0.0, 0.0, 100.0, 100.0), (40.0, 0.0, 140.0, 100.0)
    between = (20.0, 0.0, 120.0, 100.0)  # an IoU of 2 / 3 with both
    truths = [(*first, 0.0, OBJECT), (*second, 0.0, OBJECT)]
    images = [([(*between, 0.9, 0.0), (*second, 0.8, 0.0)], truths)]
    found = resampled_average_precision(*padded(images), 3)(np.ones((1, 1)))
    assert found["map_50"] == pytest.approx([51 / 101])
    assert coco_metrics(data_of(images), LABELS)["map_50"] == pytest.approx(51 / 101)


def test_a_recall_reaches_the_points_that_it_reaches_for_coco() -> None:
    # In floating point 0.29 * 100 is below 29, and COCO's point at 35 % lies above 0.35.
    points = np.linspace(0, 1, 101)
    boxes = [(20.0 * (index % 10), 20.0 * (index // 10)) for index in range(100)]
    rows = [(x, y, x + 15, y + 15) for x, y in boxes]
    truths = [(*row, 0.0, OBJECT) for row in rows]
    for count in range(1, 101):
        hits = [(*row, 0.9, 0.0) for row in rows[:count]]
        found = resampled_average_precision(*padded([(hits, truths)]), 1)(np.ones((1, 1)))
        reached = (points <= count / 100).sum()
        assert found["map"] == pytest.approx([reached / 101])


def test_weights_count_images_as_if_they_were_repeated() -> None:
    for seed in range(1, 40, 2):
        outputs, targets = random_detections(seed)
        generator = np.random.default_rng(seed)
        outputs[:, :, 4] *= generator.uniform(0.9, 1.0, outputs.shape[:2])  # without ties
        weights = generator.multinomial(len(outputs), np.full(len(outputs), 1 / len(outputs)), 3)
        resampled = resampled_average_precision(outputs, targets, len(LABELS))
        found = resampled(weights.astype(float))
        for row, counts in enumerate(weights):
            rows = np.repeat(np.arange(len(outputs)), counts)
            expected = pycocotools_metrics(outputs[rows], targets[rows])
            for name in ("map", "map_50"):
                value = expected[name] if expected[name] > -1 else np.nan
                assert found[name][row] == pytest.approx(value, abs=1e-6, nan_ok=True), seed


def test_resamples_in_several_chunks_equal_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, targets = random_detections(7)
    weights = np.random.default_rng(0).integers(0, 4, (50, len(outputs))).astype(float)
    expected = resampled_average_precision(outputs, targets, 3)(weights)["map"]
    monkeypatch.setattr("eagleray.tasks.detection.resampling._MAX_CELLS", 100)
    found = resampled_average_precision(outputs, targets, 3)(weights)["map"]
    assert found.tolist() == expected.tolist()
    assert len(set(found.tolist())) > 10


def test_a_label_without_objects_in_a_resample_is_in_no_mean_of_it() -> None:
    hit, miss = (*BOX, 0.9, 0.0), (100.0, 100.0, 120.0, 120.0, 0.9, 1.0)
    images = [([hit], [(*BOX, 0.0, OBJECT)]), ([miss], [(*BOX, 1.0, OBJECT)]), ([], [])]
    resampled = resampled_average_precision(*padded(images), 3)
    weights = np.array([[1.0, 1, 1], [1, 0, 0], [0, 1, 2], [0, 0, 3]])
    assert resampled(weights)["map"] == pytest.approx([0.5, 1.0, 0.0, np.nan], nan_ok=True)
    assert resampled(np.empty((0, 3)))["map"].shape == (0,)


def test_undefined_metrics_are_left_out() -> None:
    small = (10.0, 10.0, 20.0, 20.0)
    data = data_of([([(*small, 0.9, 1.0)], [(*small, 1.0, OBJECT), (*BOX, 0.0, CROWD)])])
    found = coco_metrics(data, LABELS)
    names = {name for name in COCO_METRICS if "medium" not in name and "large" not in name}
    assert found == pytest.approx(dict.fromkeys([*names, "ap[nut]", "ap_50[nut]"], 1.0))


def test_without_images_or_true_objects_there_are_no_metrics() -> None:
    assert coco_metrics(data_of([]), LABELS) == {}
    assert coco_metrics(data_of([([(*BOX, 0.9, 1.0)], [])]), LABELS) == {}
    assert coco_metrics(data_of([([], [(*BOX, 1.0, CROWD)])]), LABELS) == {}


def test_no_detections_have_a_precision_of_zero() -> None:
    images: list[tuple[list[Row], list[Row]]] = [([], [(*BOX, 2.0, OBJECT)])]
    arrays = padded(images)
    masks = mask_detection_set(*observed_masks(*arrays, masks_of(*arrays)), len(LABELS))
    for data in (data_of(images), masks):
        found = coco_metrics(data, LABELS)
        assert found["map"] == found["mar_100"] == found["ap[washer]"] == 0


def test_nothing_is_printed_or_logged(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    outputs, targets = random_detections(3)
    data = detection_set(outputs, targets, len(LABELS))
    observed = observed_masks(outputs, targets, masks_of(outputs, targets))
    with caplog.at_level(logging.DEBUG):
        coco_metrics(data, LABELS)
        coco_metrics(mask_detection_set(*observed, len(LABELS)), LABELS)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert len(recwarn) == 0


def test_an_image_with_more_objects_than_coco_has_may_have_all_of_them_found() -> None:
    """As pycocotools with `maxDets` of 150, but for `mar_100`, which counts 100."""
    corners = np.stack(np.meshgrid(np.arange(15), np.arange(10)), axis=-1).reshape(-1, 2) * 20.0
    outputs = np.zeros((1, 200, 6), np.float32)
    outputs[0, :150, :2], outputs[0, :150, 2:4] = corners, corners + 10
    outputs[0, :150, 4] = np.linspace(0.9, 0.1, 150)
    targets = np.zeros((1, 151, 6), np.float32)
    targets[0, 0, :2] = 300, 200
    targets[0, 1:, :2], targets[0, 1:, 2:4], targets[0, 1:, 5] = corners, corners + 10, OBJECT
    data = detection_set(outputs, targets, 1)
    found = coco_metrics(data, ["cell"])
    assert found["map"] == pytest.approx(1.0)
    assert found["mar_small"] == pytest.approx(1.0)
    assert found["mar_100"] == pytest.approx(100 / 150)
    assert found["mar_10"] == pytest.approx(10 / 150)
    resampled = resampled_average_precision(outputs, targets, 1)(np.ones((1, 1)))
    assert resampled["map"][0] == pytest.approx(1.0)
