"""The comparison of an exported model with the original, by values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from eagleray.exports.compare import Comparison, Tolerance, compare, tolerance_of
from eagleray.imaging.geometry import Frame
from eagleray.tasks import Multiclass, Regression
from tests.support.models import small_package

TASK = Multiclass(labels=("cat", "dog"))
ORIGINAL = ((0.9, 0.1), (0.4, 0.6), (0.2, 0.8))


def compared(
    exported: Sequence[Sequence[float]],
    tolerance: Tolerance,
    original: Sequence[Sequence[float]] = ORIGINAL,
) -> Comparison:
    pairs = []
    for rows in (original, exported):
        outputs = np.asarray(rows, np.float32)
        pairs.append((outputs, [TASK.postprocess(row, Frame(8, 8)) for row in outputs]))
    uris = [f"{number}.png" for number in range(len(original))]
    return compare(TASK, uris, pairs[0], pairs[1], tolerance)


def test_equal_outputs_pass() -> None:
    found = compared(ORIGINAL, Tolerance(0.001, 0.01, 0.99))
    assert found.faults == ()
    assert (found.max_difference, found.mean_difference, found.agreement) == (0.0, 0.0, 1.0)


def test_the_worst_image_and_both_differences_are_found() -> None:
    found = compared(((0.9, 0.1), (0.52, 0.48), (0.2, 0.8)), Tolerance(0.05))
    assert found.worst.uri == "1.png"
    assert (found.worst.original, found.worst.exported) == ("dog", "cat")
    assert found.max_difference == pytest.approx(0.12, abs=1e-6)
    assert found.mean_difference == pytest.approx(0.04, abs=1e-6)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.faults == ("differs by 0.12 where 0.05 is allowed",)


def test_predictions_that_change_fail_although_outputs_are_near() -> None:
    tolerance = Tolerance(0.4, min_agreement=0.99)
    found = compared(((0.9, 0.1), (0.52, 0.48), (0.55, 0.45)), tolerance)
    assert found.faults == ("predicts the same for 33.3% of the images where 99% is needed",)
    one = compared(((0.9, 0.1), (0.52, 0.48), (0.2, 0.8)), tolerance)
    assert one.faults == ()


def test_small_outputs_that_do_not_tell_images_apart_fail() -> None:
    original = ((0.5001, 0.4999), (0.4999, 0.5001))
    found = compared(((0.5, 0.5), (0.5, 0.5)), Tolerance(0.001, 0.01), original)
    assert found.max_difference < 0.001
    assert found.faults == (
        "differs by 100.0% of what distinguishes one image from another where 1% is allowed",
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_fail(value: float) -> None:
    found = compared(((0.9, 0.1), (value, 0.6), (0.2, 0.7)), Tolerance(0.2))
    assert found.faults
    assert found.worst.uri == "1.png"
    text = json.dumps(found.as_json(), allow_nan=False)
    assert json.loads(text)["max_difference"] is None
    assert not json.loads(text)["passed"]


def test_one_image_has_no_variation() -> None:
    found = compared(((0.9, 0.1),), Tolerance(0.001, 0.01), ((0.9, 0.1),))
    assert found.relative_difference is None
    assert found.faults == ()


def test_the_tolerance_is_in_the_unit_of_the_task() -> None:
    assert tolerance_of(small_package()).max_difference == 0.001
    regression = small_package(task=Regression(mean=5.0, std=20.0))
    assert tolerance_of(regression).max_difference == pytest.approx(0.02)
