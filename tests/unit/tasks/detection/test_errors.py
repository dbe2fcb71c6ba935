"""Kinds of errors of detections, against cases that are decided by hand."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.tasks.detection.boxes import CROWD, OBJECT, detection_set
from eagleray.tasks.detection.errors import ErrorKind, detection_errors
from tests.support.detections import LABELS, Row, data_of, random_detections

pytestmark = pytest.mark.numerical

BOLT, NUT = 0.0, 1.0
TRUTH: Row = (0.0, 0.0, 100.0, 100.0, BOLT, OBJECT)
RIGHT = (0.0, 0.0, 100.0, 100.0)
POOR = (0.0, 0.0, 100.0, 30.0)  # an IoU of 0.3
ASIDE = (0.0, 95.0, 100.0, 200.0)  # an IoU of 5 / 200


@pytest.mark.parametrize(
    ("box", "label", "kind", "truth", "missed"),
    [
        (RIGHT, BOLT, ErrorKind.HIT, 0, False),
        (RIGHT, NUT, ErrorKind.CLASSIFICATION, 0, False),
        (POOR, BOLT, ErrorKind.LOCALIZATION, 0, False),
        (POOR, NUT, ErrorKind.BOTH, -1, True),
        (ASIDE, BOLT, ErrorKind.BACKGROUND, -1, True),
        (ASIDE, NUT, ErrorKind.BACKGROUND, -1, True),
    ],
)
def test_kinds_by_overlap_and_label(
    box: tuple[float, ...], label: float, kind: ErrorKind, truth: int, missed: bool
) -> None:
    x1, y1, x2, y2 = box
    errors = detection_errors(data_of([([(x1, y1, x2, y2, 0.9, label)], [TRUTH])]))
    assert errors.kind.tolist() == [kind]
    assert errors.truth.tolist() == [truth]
    assert errors.missed.tolist() == [missed]


def test_the_second_detection_of_an_object_is_a_duplicate() -> None:
    detections = [(*RIGHT, 0.9, BOLT), (0.0, 0.0, 100.0, 90.0, 0.8, BOLT)]
    errors = detection_errors(data_of([(detections, [TRUTH])]))
    assert errors.kind.tolist() == [ErrorKind.HIT, ErrorKind.DUPLICATE]
    assert errors.truth.tolist() == [0, 0]


def test_an_object_of_another_image_is_none_of_this_one() -> None:
    errors = detection_errors(data_of([([(*RIGHT, 0.9, BOLT)], []), ([], [TRUTH])]))
    assert errors.kind.tolist() == [ErrorKind.BACKGROUND]
    assert errors.missed.tolist() == [True]


def test_counts_and_confusion_of_several_images() -> None:
    first = (
        [(*RIGHT, 0.9, BOLT), (*RIGHT, 0.8, BOLT), (*RIGHT, 0.7, NUT), (*POOR, 0.6, NUT)],
        [TRUTH],
    )
    second = ([(*POOR, 0.9, BOLT), (*ASIDE, 0.5, BOLT)], [TRUTH])
    third = ([(*RIGHT, 0.9, 2.0)], [TRUTH, (200.0, 0.0, 250.0, 50.0, NUT, OBJECT)])
    data = data_of([first, second, third])
    errors = detection_errors(data)
    assert errors.counts == {
        "classification": 2,
        "localization": 1,
        "both": 1,
        "duplicate": 1,
        "background": 1,
        "missed": 1,
    }
    assert errors.confusion(data).tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_detections_below_their_threshold_are_ignored_and_their_objects_missed() -> None:
    detections = [(*RIGHT, 0.4, BOLT), (*RIGHT, 0.4, NUT)]
    data = data_of([(detections, [TRUTH])])
    errors = detection_errors(data, np.array([0.5, 0.3, 0.5]))
    assert errors.kind.tolist() == [ErrorKind.IGNORED, ErrorKind.CLASSIFICATION]
    assert errors.missed.tolist() == [False]
    errors = detection_errors(data, np.array([0.5, 0.5, 0.5]))
    assert errors.kind.tolist() == [ErrorKind.IGNORED, ErrorKind.IGNORED]
    assert errors.missed.tolist() == [True]
    at_score = float(np.float32(0.4))
    errors = detection_errors(data, np.array([at_score, 0.5, 0.5]))
    assert errors.kind.tolist() == [ErrorKind.HIT, ErrorKind.IGNORED]


def test_a_detection_in_a_crowd_is_ignored_and_a_crowd_is_not_missed() -> None:
    crowd: Row = (0.0, 0.0, 300.0, 200.0, BOLT, CROWD)
    errors = detection_errors(data_of([([(*RIGHT, 0.9, BOLT), (*RIGHT, 0.8, NUT)], [crowd])]))
    assert errors.kind.tolist() == [ErrorKind.IGNORED, ErrorKind.BACKGROUND]
    assert errors.missed.tolist() == [False]


def test_every_detection_and_every_object_is_accounted_for() -> None:
    for seed in range(30):
        data = detection_set(*random_detections(seed), len(LABELS))
        errors = detection_errors(data)
        known = sum(int((errors.kind == kind).sum()) for kind in ErrorKind)
        assert known == len(data.score)
        hits = errors.truth[errors.kind == ErrorKind.HIT]
        assert len(set(hits.tolist())) == len(hits)
        assert not errors.missed[hits].any()
        named = np.isin(
            errors.kind,
            (
                ErrorKind.HIT,
                ErrorKind.CLASSIFICATION,
                ErrorKind.LOCALIZATION,
                ErrorKind.DUPLICATE,
            ),
        )
        assert (named == (errors.truth >= 0)).all()
