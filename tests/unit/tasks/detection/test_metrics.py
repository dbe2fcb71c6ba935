"""The names of metrics of detections, and the arrays that they are computed from."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.core.errors import InputError
from eagleray.tasks.detection.boxes import CROWD, OBJECT, detection_set
from eagleray.tasks.detection.curves import best_f1, count_error
from eagleray.tasks.detection.metrics import detection_metric_names, measure_detections
from tests.support.detections import LABELS, data_of, padded, random_detections

pytestmark = pytest.mark.numerical

BOX = (10.0, 10.0, 42.0, 42.0)


def test_the_names_are_those_of_what_is_measured() -> None:
    names = set()
    for seed in range(60):
        data = detection_set(*random_detections(seed), len(LABELS))
        metrics = measure_detections(data, LABELS)
        assert tuple(metrics) == detection_metric_names(LABELS, data)
        assert all(np.isfinite(value) for value in metrics.values())
        names |= set(metrics)
    assert names == set(detection_metric_names(LABELS))


def test_an_area_at_a_limit_has_both_sizes() -> None:
    data = data_of([([(*BOX, 0.9, 0.0)], [(*BOX, 0.0, OBJECT)])])
    metrics = measure_detections(data, LABELS)
    assert metrics["map_small"] == metrics["map_medium"] == pytest.approx(1.0)
    assert "map_large" not in metrics


def test_f1_and_count_error_are_at_the_best_thresholds() -> None:
    data = detection_set(*random_detections(12), len(LABELS))
    metrics, best = measure_detections(data, LABELS), best_f1(data, LABELS)
    assert [metrics[f"f1[{label}]"] for label in best] == [one.f1 for one in best.values()]
    assert metrics["f1_macro"] == pytest.approx(np.mean([one.f1 for one in best.values()]))
    assert set(best) == set(LABELS)
    assert metrics["count_error"] == count_error(data, [one.threshold for one in best.values()])


def test_without_objects_nothing_is_measured() -> None:
    data = data_of([([(*BOX, 0.9, 0.0)], [(*BOX, 0.0, CROWD)])])
    assert measure_detections(data, LABELS) == {}
    assert detection_metric_names(LABELS, data) == ()


def test_rows_are_read_and_empty_ones_left_out() -> None:
    images = [([], []), ([(*BOX, 0.5, 2.0)], [(*BOX, 1.0, OBJECT), (*BOX, 0.0, CROWD)])]
    data = data_of(images)
    assert (data.image.tolist(), data.label.tolist(), data.score.tolist()) == ([1], [2], [0.5])
    assert (data.true_image.tolist(), data.true_label.tolist()) == ([1, 1], [1, 0])
    assert data.crowd.tolist() == [False, True]
    assert data.box.tolist() == [list(BOX)]
    assert data.num_true.tolist() == [0, 1, 0]


@pytest.mark.parametrize("column", [0, 4, 5])
def test_numbers_that_are_not_finite_are_refused(column: int) -> None:
    outputs, targets = padded([([], []), ([(*BOX, 0.9, 0.0)], [(*BOX, 0.0, OBJECT)])])
    outputs[1, 0, column] = np.nan
    with pytest.raises(InputError, match="A detection of image 1 has numbers that are not finite"):
        detection_set(outputs, targets, 3)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_there_are_not_are_refused(label: float) -> None:
    outputs, targets = padded([([], [(*BOX, label, OBJECT)])])
    with pytest.raises(InputError, match=f"label index {label}, and there are 3 labels"):
        detection_set(outputs, targets, 3)


def test_arrays_of_other_shapes_are_refused() -> None:
    outputs, targets = padded([([], [])])
    with pytest.raises(InputError, match="do not belong together"):
        detection_set(outputs[:, :, :5], targets, 3)
    with pytest.raises(InputError, match="do not belong together"):
        detection_set(np.concatenate([outputs, outputs]), targets, 3)
