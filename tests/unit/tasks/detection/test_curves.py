"""PASCAL VOC's AP, F1 at the best threshold and errors of counts, against numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.tasks.detection.boxes import CROWD, OBJECT
from eagleray.tasks.detection.coco_metrics import coco_metrics
from eagleray.tasks.detection.curves import BestF1, best_f1, count_error, voc_metrics
from eagleray.tasks.detection.matching import match_as_voc
from tests.support.detections import LABELS, Row, data_of

pytestmark = pytest.mark.numerical

FAR = (200.0, 200.0, 220.0, 220.0)


def place(index: int) -> tuple[float, float, float, float]:
    """Return one of several boxes that do not overlap."""
    return (40.0 * index, 0.0, 40.0 * index + 30, 30.0)


def truths(count: int, label: float = 0.0) -> list[Row]:
    return [(*place(index), label, OBJECT) for index in range(count)]


def found(scores: dict[float, int | None], label: float = 0.0) -> list[Row]:
    """Return detections by their scores: of which object each is, or of none."""
    return [
        (*(FAR if index is None else place(index)), score, label) for score, index in scores.items()
    ]


def test_average_precision_of_voc_by_hand() -> None:
    # Hits at ranks 1, 3 and 5 of 4 objects: precisions 1, 2/3 and 3/5 at recalls 1/4, 1/2 and 3/4.
    detections = found({0.9: 0, 0.8: None, 0.7: 1, 0.6: None, 0.5: 2})
    metrics = voc_metrics(data_of([(detections, truths(4))]), LABELS)
    assert metrics == pytest.approx(
        {
            "voc_ap[bolt]": (1 + 2 / 3 + 3 / 5) / 4,
            "voc_map": (1 + 2 / 3 + 3 / 5) / 4,
            "voc_ap_11[bolt]": (3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11,
            "voc_map_11": (3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11,
        }
    )


def test_a_recall_of_three_tenths_reaches_the_point_at_three_tenths() -> None:
    # 3 / 10 is below 3 * 0.1 in floating point.
    detections = found({0.9: 0, 0.8: 1, 0.7: 2})
    data = data_of([(detections, truths(8)), ([], truths(2))])
    assert voc_metrics(data, LABELS)["voc_map_11"] == pytest.approx(4 / 11)


def test_a_later_hit_of_higher_precision_counts_for_earlier_recalls() -> None:
    detections = found({0.9: None, 0.8: 0, 0.7: 1})
    metrics = voc_metrics(data_of([(detections, truths(2))]), LABELS)
    assert metrics["voc_map"] == pytest.approx(2 / 3)
    assert metrics["voc_map_11"] == pytest.approx(2 / 3)


def test_voc_matches_only_the_object_that_overlaps_most() -> None:
    boxes = [(0.0, 0.0, 100.0, 100.0), (0.0, 0.0, 100.0, 80.0)]
    true = [(*box, 0.0, OBJECT) for box in boxes]
    # Its IoU with the first object is 0.95, which is taken, and with the other one 80 / 95.
    detections = [(*boxes[0], 0.9, 0.0), (0.0, 0.0, 100.0, 95.0, 0.8, 0.0)]
    data = data_of([(detections, true)])
    assert match_as_voc(data).truth.tolist() == [[0, -1]]
    assert voc_metrics(data, LABELS)["voc_map"] == pytest.approx(0.5)
    assert coco_metrics(data, LABELS)["map_50"] == pytest.approx(1.0)


def test_means_are_over_labels_with_objects_and_images_share_one_ranking() -> None:
    first = (found({0.5: 0}) + found({0.9: None}, 2.0), truths(1))
    second = (found({0.7: None}), truths(1, 1.0))
    metrics = voc_metrics(data_of([first, second]), LABELS)
    assert metrics["voc_ap[bolt]"] == pytest.approx(0.5)
    assert metrics["voc_ap[nut]"] == 0
    assert metrics["voc_map"] == pytest.approx(0.25)
    assert "voc_ap[washer]" not in metrics
    assert voc_metrics(data_of([([], [])]), LABELS) == {}


def test_detections_in_a_crowd_do_not_count() -> None:
    crowd = (0.0, 100.0, 300.0, 240.0, 0.0, CROWD)
    detections = found({0.9: None, 0.8: 0, 0.7: None})  # `FAR` lies in the crowd
    data = data_of([(detections, [crowd, *truths(1)])])
    assert voc_metrics(data, LABELS)["voc_map"] == 1
    assert best_f1(data, LABELS)["bolt"].f1 == 1
    assert count_error(data, [0.1, None, None]) == 0


def test_best_f1_by_hand() -> None:
    # F1 from each score on: 2/4, 2/5, 4/6, 4/7.
    detections = found({0.875: 0, 0.75: None, 0.5: 1, 0.25: None})
    best = best_f1(data_of([(detections, truths(3))]), LABELS)
    assert best == {"bolt": BestF1(f1=2 / 3, precision=2 / 3, recall=2 / 3, threshold=0.375)}


def test_equal_scores_are_kept_together() -> None:
    rows = [*found({0.5: None}), *found({0.5: 0})]
    best = best_f1(data_of([(rows, truths(1))]), LABELS)["bolt"]
    assert best == BestF1(f1=2 / 3, precision=0.5, recall=1.0, threshold=0.25)


def test_of_equal_f1_the_highest_threshold_is_best() -> None:
    # F1 from each score on: 2/3, 2/4, 2/5, 4/6.
    detections = found({0.9: 0, 0.8: None, 0.7: None, 0.6: 1})
    best = best_f1(data_of([(detections, truths(2))]), LABELS)["bolt"]
    assert best.f1 == pytest.approx(2 / 3)
    assert best.threshold == pytest.approx(0.85)


def test_without_a_hit_there_is_no_threshold() -> None:
    best = best_f1(data_of([(found({0.9: None}), [*truths(1), *truths(1, 2.0)])]), LABELS)
    assert best == {"bolt": BestF1(), "washer": BestF1()}
    assert best["bolt"].threshold is None


def test_errors_of_counts_by_hand() -> None:
    first = (found({0.9: 0, 0.8: 1, 0.3: None}) + found({0.6: None}, 2.0), truths(1))
    second = (found({0.7: 0, 0.2: 1}), truths(4) + truths(1, 1.0))
    data = data_of([first, second])
    # bolt: 2 for 1 and 1 for 4; nut: 0 for 0 and 0 for 1; no washer is in the truth.
    thresholds = [0.5, None, 0.5]
    assert count_error(data, thresholds) == pytest.approx((1 + 3 + 0 + 1) / 4)
    assert count_error(data_of([([], [])]), thresholds) is None


def test_a_threshold_keeps_what_its_f1_was_measured_with() -> None:
    scores = np.array([0.7, np.nextafter(np.float32(0.7), np.float32(0))], np.float32)
    detections = [(*place(0), float(scores[0]), 0.0), (*FAR, float(scores[1]), 0.0)]
    data = data_of([(detections, truths(1))])
    best = best_f1(data, LABELS)["bolt"]
    assert best.f1 == 1
    assert count_error(data, [best.threshold, None, None]) == 0
