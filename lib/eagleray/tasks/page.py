"""Plots and tables of an evaluation's page as plain values; `eagleray.reports` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Box",
    "ConfusionMatrix",
    "Curves",
    "Drawing",
    "Histogram",
    "Plot",
    "Scatter",
    "Section",
    "Table",
]

Line = tuple[str, Sequence[float], Sequence[float]]
"""name, x, y"""


@dataclass(frozen=True)
class ConfusionMatrix:
    """Images by true and predicted class; `counts` is (num_labels, num_labels), true first."""

    labels: Sequence[str]
    counts: npt.NDArray[np.integer[Any]]
    title: str


@dataclass(frozen=True)
class Curves:
    """Named lines in the unit square, and optionally the diagonal."""

    lines: Sequence[Line]
    title: str
    x_label: str
    y_label: str
    diagonal: bool = False


@dataclass(frozen=True)
class Scatter:
    """Points."""

    x: Sequence[float]
    y: Sequence[float]
    title: str
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Histogram:
    """Counts between edges."""

    edges: Sequence[float]
    counts: Sequence[int]
    title: str
    label: str


Plot = ConfusionMatrix | Curves | Scatter | Histogram


@dataclass(frozen=True)
class Table:
    """A table; cells are texts, counts (int), figures (float), or None for what is not defined."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str | int | float | None, ...]]


@dataclass(frozen=True, slots=True)
class Box:
    """A box that is drawn over an image.

    Attributes:
        x: Left edge in pixels of the upright original.
        y: Upper edge.
        width: Width.
        height: Height.
        label: Label of what is in it.
        score: Score of a prediction; None for a true object.
    """

    x: float
    y: float
    width: float
    height: float
    label: str
    score: float | None = None

    @property
    def is_true(self) -> bool:
        """Whether it is a true object; a prediction otherwise."""
        return self.score is None

    @property
    def text(self) -> str:
        """What is written beside it."""
        return self.label if self.score is None else f"{self.label} {self.score:.2f}"


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn over an image.

    Attributes:
        boxes: Boxes of objects.
        mask: PNG of the size of the upright original, whose gray values are the indices of classes;
            pixels of the class 0 stay as they are. Empty for no mask.
    """

    boxes: Sequence[Box] = ()
    mask: bytes = b""


@dataclass(frozen=True)
class Section:
    """What a task contributes to the page of an evaluation."""

    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
