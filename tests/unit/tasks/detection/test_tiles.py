"""Detections of neighbouring tiles: each object once, and whole if a tile sees it whole."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.imaging.geometry import Frame
from eagleray.imaging.tiles import Tiling, tile_windows
from eagleray.tasks import Detection
from eagleray.tasks.detection.object_task import ObjectsPrediction
from eagleray.tasks.detection.tiles import TileDetections

Rows = list[list[float]]

LEFT, RIGHT = tile_windows(180, 100, Tiling(100, 0.2))
WHOLE = tile_windows(180, 100, Tiling(100, 0.2, whole=True))[-1]
assert (LEFT.edges, RIGHT.edges) == ((0, 0, 100, 100), (80, 0, 180, 100))


def row(x1: float, y1: float, x2: float, y2: float, score: float, label: int = 0) -> list[float]:
    return [x1, y1, x2, y2, score, label]


def joined(left: Rows, right: Rows, whole: Rows) -> Rows:
    """Return what stays of detections in pixels of the image, each seen by a tile."""
    found = TileDetections(180, 100)
    for window, rows in ((LEFT, left), (RIGHT, right), (WHOLE, whole)):
        own = np.asarray(rows, np.float32).reshape(-1, 6)
        own[:, 0:4:2] -= window.left
        found.add(window, own)
    stay: Rows = found.joined(0.6).astype(float).tolist()
    return stay


@pytest.mark.parametrize(
    ("left", "right", "whole", "kept"),
    [
        # one object in the overlap, which both see whole: the better one stays
        ([row(84, 10, 96, 30, 0.8)], [row(84, 10, 96, 31, 0.9)], [], [row(84, 10, 96, 31, 0.9)]),
        # equal scores: the first one stays
        ([row(84, 10, 96, 30, 0.8)], [row(84, 10, 96, 31, 0.8)], [], [row(84, 10, 96, 30, 0.8)]),
        # a part at the edge gives way to the whole object, although its score is higher
        ([row(85, 10, 100, 30, 0.9)], [row(85, 10, 130, 30, 0.7)], [], [row(85, 10, 130, 30, 0.7)]),
        # but not to a detection that is hardly one
        (
            [row(85, 10, 100, 30, 0.9)],
            [row(85, 10, 130, 30, 0.1)],
            [],
            [row(85, 10, 100, 30, 0.9), row(85, 10, 130, 30, 0.1)],
        ),
        # another label, and other pixels of the overlap, are another object
        (
            [row(85, 10, 100, 30, 0.9, 1)],
            [row(85, 10, 130, 30, 0.7)],
            [],
            [row(85, 10, 100, 30, 0.9, 1), row(85, 10, 130, 30, 0.7)],
        ),
        (
            [row(85, 10, 100, 30, 0.9)],
            [row(85, 60, 130, 80, 0.7)],
            [],
            [row(85, 10, 100, 30, 0.9), row(85, 60, 130, 80, 0.7)],
        ),
        # an object larger than the overlap: of two parts the larger one stays
        ([row(20, 10, 100, 30, 0.6)], [row(80, 10, 120, 30, 0.9)], [], [row(20, 10, 100, 30, 0.6)]),
        # and both give way to what the pass of the whole image sees
        (
            [row(20, 10, 100, 90, 0.9)],
            [row(80, 10, 150, 90, 0.9)],
            [row(20, 10, 150, 90, 0.8)],
            [row(20, 10, 150, 90, 0.8)],
        ),
        # an object at the edge of the image is whole
        ([row(0, 0, 20, 20, 0.5)], [row(170, 0, 180, 9, 0.6)], [], None),
    ],
)
def test_each_object_stays_once(left: Rows, right: Rows, whole: Rows, kept: Rows | None) -> None:
    expected = sorted([*left, *right], key=lambda one: -one[4]) if kept is None else kept
    assert joined(left, right, whole) == [pytest.approx(one, abs=1e-3) for one in expected]


def test_an_image_may_have_more_objects_than_a_tile() -> None:
    task = Detection(labels=("cell",), max_objects=2)
    joiner = task.join_tiles(180, 100)
    frame = Frame(100, 100, scale_x=2.0, scale_y=2.0)
    for window in (LEFT, RIGHT):
        rows = [row(5, 5, 10, 10, 0.9), row(20, 20, 30, 30, 0.8)]
        joiner.add(window, np.asarray(rows, np.float32), frame)
    prediction = joiner.prediction()
    assert isinstance(prediction, ObjectsPrediction)
    assert [(one.x, one.y, one.width) for one in prediction.objects] == [
        (10, 10, 10),
        (90, 10, 10),
        (40, 40, 20),
        (120, 40, 20),
    ]
    assert task.counts(prediction) == {"cell": 4}


def test_outputs_that_are_not_finite_stay_so() -> None:
    found = TileDetections(180, 100)
    found.add(LEFT, np.full((2, 6), np.nan, np.float32))
    found.add(RIGHT, np.asarray([row(1, 1, 9, 9, 0.9)], np.float32))
    assert np.isnan(found.joined(0.6)).all()
