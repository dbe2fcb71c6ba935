"""Hierarchies of labels that are written as paths, such as `animal/dog/terrier`.

A node of a level is the beginning of a path; its probability is the sum of those of its labels. A
label with a shorter path is a node of every level below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.core.limits import MAX_HIERARCHY_DEPTH
from eagleray.tasks.label_metrics import count_labels, macro

__all__ = ["SEPARATOR", "Level", "LevelHits", "levels_of"]

SEPARATOR = "/"

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """One level above the labels.

    Attributes:
        nodes: Its nodes, sorted.
        node_of: Index of each label's node (num_labels,).
    """

    nodes: tuple[str, ...]
    node_of: Integers

    def scores(self, probabilities: Floats) -> Floats:
        """Return the probabilities of the nodes (N, num_nodes), from those of the labels."""
        order, starts = self._groups
        summed: Floats = np.add.reduceat(probabilities[:, order], starts, axis=1)
        return summed

    @cached_property
    def _groups(self) -> tuple[Integers, Integers]:
        """The labels by node, and where in them each node begins."""
        order = np.argsort(self.node_of, kind="stable")
        return order, np.searchsorted(self.node_of[order], np.arange(len(self.nodes)))


@dataclass(frozen=True)
class LevelHits:
    """The nodes of images at one level.

    Attributes:
        number: Number of the level, from 1.
        nodes: Its nodes.
        truth: Index of each image's true node (N,).
        predicted: Index of its most likely node (N,).
    """

    number: int
    nodes: tuple[str, ...]
    truth: Integers
    predicted: Integers

    @property
    def accuracy(self) -> float:
        """Share of the images whose node is predicted."""
        return float((self.truth == self.predicted).mean())

    @property
    def f1_macro(self) -> float:
        """F1, averaged over the nodes that an image has."""
        counts = count_labels(self.predicted, self.truth, len(self.nodes))
        return float(macro(counts.f1, counts))

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the level by name."""
        return {
            f"accuracy_level{self.number}": self.accuracy,
            f"f1_macro_level{self.number}": self.f1_macro,
        }


def levels_of(labels: Sequence[str]) -> tuple[Level, ...]:
    """Return the levels above the labels, the widest first.

    Returns:
        No levels if no two labels begin alike: `n/a` beside `yes` and `no` is no hierarchy.
    """
    paths = [label.split(SEPARATOR, MAX_HIERARCHY_DEPTH) for label in labels]
    found = []
    for depth in range(1, max(map(len, paths), default=1)):
        names = [SEPARATOR.join(path[:depth]) for path in paths]
        nodes = tuple(sorted(set(names)))
        if len(nodes) == len(labels):
            break  # this level, and those below it, are the labels
        index = {node: at for at, node in enumerate(nodes)}
        found.append(Level(nodes, np.array([index[name] for name in names])))
    return tuple(found)
