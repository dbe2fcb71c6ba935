"""Intervals of figures, and figures of slices."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.core.errors import UnknownNameError
from eagleray.evaluation.bootstrap import Measured, bootstrap, paired_bootstrap
from eagleray.evaluation.slices import choose_columns, slice_metrics
from eagleray.tasks import Binary, Multiclass, Task
from tests.support.evaluation import CLASSES, DEFECTS, TAGS, TASKS, answers_of, evaluation_of

BY_NAME = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


# --- intervals --------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.sampled_from(TASKS), st.integers(2, 40), st.integers(0, 10_000), st.booleans())
def test_a_resample_is_measured_as_its_images_would_be(
    task: Task, num_images: int, seed: int, ties: bool
) -> None:
    outputs, targets = answers_of(task, num_images, seed=seed, ties=ties)
    rows = np.random.default_rng(seed).integers(0, num_images, (3, num_images))
    weights = np.stack([np.bincount(row, minlength=num_images) for row in rows]).astype(float)
    figures = task.weighted_metrics(outputs, targets)(weights)
    assert set(figures) <= set(task.headline_names)
    for place, row in enumerate(rows):
        expected = task.measure(outputs[row], targets[row])
        got = {name: values[place] for name, values in figures.items()}
        known = {name: value for name, value in got.items() if np.isfinite(value)}
        assert known == pytest.approx({name: expected[name] for name in known}, abs=1e-6)
        assert set(got) - set(known) <= set(got) - set(expected)


def test_an_interval_is_as_wide_as_statistics_say() -> None:
    task = Binary(labels=("no", "yes"))
    right = torch.arange(400) < 320
    outputs = torch.where(right[:, None], torch.tensor([0.2, 0.8]), torch.tensor([0.8, 0.2]))
    found = bootstrap(task, outputs, torch.ones(400), num_resamples=4000)["accuracy"]
    half = 1.96 * (0.8 * 0.2 / 400) ** 0.5  # of a normal distribution
    assert found.low == pytest.approx(0.8 - half, abs=0.006)
    assert found.high == pytest.approx(0.8 + half, abs=0.006)


@BY_NAME
def test_intervals_contain_the_metrics_and_are_reproducible(task: Task) -> None:
    outputs, targets = answers_of(task, 500)
    intervals = bootstrap(task, outputs, targets)
    figures = task.measure(outputs, targets)
    for name, found in intervals.items():
        assert found.low <= figures[name] <= found.high
        assert found.low < found.high
    assert bootstrap(task, outputs, targets) == intervals
    assert bootstrap(task, outputs, targets, seed=1) != intervals


def test_a_metric_that_no_resample_defines_has_no_interval() -> None:
    outputs, _ = answers_of(DEFECTS, 20)
    assert set(bootstrap(DEFECTS, outputs, torch.zeros(20))) == {"accuracy", "log_loss"}


def test_ten_thousand_images_take_a_moment() -> None:
    task = Multiclass(labels=tuple(str(index) for index in range(10)))
    outputs, targets = answers_of(task, 10_000)
    started = time.process_time()  # what others do on this machine does not count
    bootstrap(task, outputs, targets)
    assert time.process_time() - started < 4


# --- slices -----------------------------------------------------------------------------------


def test_each_value_of_a_column_is_measured_by_itself() -> None:
    outputs, targets = answers_of(CLASSES, 100)
    cameras = ["new" if row < 60 else "old" if row < 99 else "" for row in range(100)]
    evaluation = evaluation_of(CLASSES, outputs, targets, attributes={"camera": cameras})
    new, old, none = slice_metrics(evaluation, ["camera"])
    assert [(one.value, one.num_images, one.is_small) for one in (new, old, none)] == [
        ("new", 60, False),
        ("old", 39, False),
        ("(none)", 1, True),
    ]
    expected = CLASSES.measure(outputs[60:99], targets[60:99])
    assert old.metrics == pytest.approx({name: expected[name] for name in old.metrics})
    assert old.metrics["accuracy"] != pytest.approx(new.metrics["accuracy"])
    assert old.intervals["accuracy"].low <= old.metrics["accuracy"]


def test_many_numbers_are_sliced_by_quartiles_and_few_by_value() -> None:
    outputs, targets = answers_of(TAGS, 101)
    attributes = {
        "size": [str(row) for row in range(101)],
        "floor": [str(row % 12) for row in range(101)],
    }
    evaluation = evaluation_of(TAGS, outputs, targets, attributes=attributes)
    quartiles = slice_metrics(evaluation, ["size"])
    assert [(one.value, one.num_images) for one in quartiles] == [
        ("0 to 25", 25),
        ("25 to 50", 25),
        ("50 to 75", 25),
        ("75 to 100", 26),
    ]
    floors = slice_metrics(evaluation, ["floor"])
    assert [one.value for one in floors] == [str(floor) for floor in range(12)]


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["", "1", "2.5", "-3e2", "7", "8"]), min_size=30, max_size=60))
def test_every_image_is_in_one_slice(values: list[str]) -> None:
    values = [*values, *[str(number) for number in range(25)]]
    outputs, targets = answers_of(DEFECTS, len(values))
    evaluation = evaluation_of(DEFECTS, outputs, targets, attributes={"size": values})
    parts = slice_metrics(evaluation, ["size"])
    assert sum(part.num_images for part in parts) == len(values)
    assert len({part.value for part in parts}) == len(parts) <= 5


def test_columns_with_few_values_are_chosen_and_others_on_request() -> None:
    outputs, targets = answers_of(CLASSES, 40)
    attributes = {
        "camera": ["a", "b"] * 20,
        "constant": ["x"] * 40,
        "serial": [str(row) for row in range(40)],
    }
    images = evaluation_of(CLASSES, outputs, targets, attributes=attributes).images
    assert choose_columns(images) == ("camera",)
    assert choose_columns(images, ["serial"]) == ("serial",)
    with pytest.raises(UnknownNameError, match=r"slice by is named 'kamera'\. Nearest: camera"):
        choose_columns(images, ["kamera"])


# --- differences ------------------------------------------------------------------------------


def right_or_wrong(right: list[bool]) -> Measured:
    """Return a binary model that is right of some images, all of which are positive."""
    sure = torch.tensor(right)[:, None]
    outputs = torch.where(sure, torch.tensor([0.2, 0.8]), torch.tensor([0.8, 0.2]))
    return Measured(Binary(labels=("no", "yes")), outputs, torch.ones(len(right)))


def test_a_difference_that_few_images_make_is_not_significant() -> None:
    first = right_or_wrong([False] * 3 + [True] * 97)
    second = right_or_wrong([True] * 2 + [False] * 1 + [True] * 97)
    found = paired_bootstrap(first, second)["accuracy"]
    assert found.value == pytest.approx(0.02, abs=1e-6)
    assert found.interval is not None
    assert found.interval.low == pytest.approx(0.0)
    assert found.p_value is not None
    assert 0.1 < found.p_value < 0.6


def test_a_clear_difference_is_significant_and_its_interval_is_narrower_than_unpaired() -> None:
    base = [index % 4 != 0 for index in range(400)]
    better = [index % 4 != 0 or index % 8 == 0 for index in range(400)]
    found = paired_bootstrap(right_or_wrong(base), right_or_wrong(better), num_resamples=2000)
    difference = found["accuracy"]
    assert difference.value == pytest.approx(0.125, abs=1e-6)
    assert difference.interval is not None
    half = 1.96 * (0.125 * 0.875 / 400) ** 0.5  # of the share of the images that differ
    assert difference.interval.low == pytest.approx(0.125 - half, abs=0.005)
    assert difference.interval.high == pytest.approx(0.125 + half, abs=0.005)
    assert difference.p_value == pytest.approx(2 / 2001)
    assert paired_bootstrap(right_or_wrong(better), right_or_wrong(base))["accuracy"].value < 0


def test_a_model_does_not_differ_from_itself() -> None:
    same = Measured(CLASSES, *answers_of(CLASSES, 60))
    for difference in paired_bootstrap(same, same).values():
        assert (difference.value, difference.p_value) == (0.0, 1.0)
