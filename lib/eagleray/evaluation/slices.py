"""Metrics of slices of the data: of the images with each value of a column of the table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eagleray.core.errors import UnknownNameError
from eagleray.data.labelled import LabelledImages
from eagleray.evaluation.bootstrap import Interval, bootstrap
from eagleray.evaluation.evaluate import Evaluation

__all__ = ["MAX_VALUES", "Slice", "choose_columns", "slice_metrics"]

MAX_VALUES = 20
"""Largest number of values of a column that is sliced by default, and by its values; a column with
more numbers is sliced by quartiles."""

_FEW_IMAGES = 30  # below, an interval is too wide to conclude from
_NO_VALUE = "(none)"


@dataclass(frozen=True, slots=True)
class Slice:
    """The images with one value in one column.

    Attributes:
        column: Name of the column.
        value: Value as in the table, or a range of numbers.
        num_images: Number of images that were measured.
        is_small: Whether there are too few images to conclude from.
        metrics: Headline metrics by name.
        intervals: 95 % confidence intervals of the metrics.
    """

    column: str
    value: str
    num_images: int
    is_small: bool
    metrics: dict[str, float]
    intervals: dict[str, Interval]


def choose_columns(images: LabelledImages, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the columns to slice by: those that are named, or all with few values.

    Raises:
        UnknownNameError: If the data have no such column.
    """
    for name in wanted:
        if name not in images.attributes:
            raise UnknownNameError("column to slice by", name, images.attributes)
    if wanted:
        return tuple(wanted)
    return tuple(
        name for name, values in images.attributes.items() if 1 < len(set(values)) <= MAX_VALUES
    )


def slice_metrics(evaluation: Evaluation, columns: Sequence[str]) -> list[Slice]:
    """Measure each value of some columns, in the order of columns and values."""
    return [
        _slice(evaluation, column, value, rows)
        for column in columns
        for value, rows in _groups(evaluation, column)
    ]


def _groups(evaluation: Evaluation, column: str) -> list[tuple[str, list[int]]]:
    """Return each value with the positions of its images among the measured ones."""
    values = [evaluation.images.attributes[column][row] for row in evaluation.rows]
    texts = _as_ranges(values) if len(set(values)) > MAX_VALUES else values
    groups: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        groups.setdefault(text or _NO_VALUE, []).append(position)
    first = {
        text: min(map(_sort_key, (values[at] for at in rows))) for text, rows in groups.items()
    }
    return sorted(groups.items(), key=lambda group: first[group[0]])


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _sort_key(text: str) -> tuple[int, float, str]:
    """Order numbers by value, then text, then missing values."""
    value = _number(text)
    if value is not None:
        return 0, value, ""
    return (1, 0.0, text) if text else (2, 0.0, "")


def _as_ranges(values: Sequence[str]) -> Sequence[str]:
    """Return the quartile of each number; text stays as it is."""
    numbers = [_number(text) for text in values]
    known = [number for number in numbers if number is not None]
    if any(number is None for number, text in zip(numbers, values, strict=True) if text):
        return values
    edges = np.unique(np.percentile(known, [0, 25, 50, 75, 100]))
    if len(edges) < 3:
        return values
    names = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    places = np.clip(np.searchsorted(edges, known, side="right") - 1, 0, len(names) - 1)
    found = iter(places.tolist())
    return ["" if number is None else names[next(found)] for number in numbers]


def _slice(evaluation: Evaluation, column: str, value: str, positions: list[int]) -> Slice:
    outputs, targets = evaluation.outputs[positions], evaluation.targets[positions]
    weighted = evaluation.task.weighted_metrics(outputs, targets)
    measured = weighted(np.ones((1, len(positions))))
    metrics = {name: float(found[0]) for name, found in measured.items() if np.isfinite(found[0])}
    intervals = bootstrap(evaluation.task, outputs, targets)
    is_small = len(positions) < _FEW_IMAGES
    return Slice(column, value, len(positions), is_small, metrics, intervals)
