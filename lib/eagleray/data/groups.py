"""Groups of rows that stay in one split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

__all__ = ["connect_groups", "merge_groups"]


def merge_groups(*groupings: Sequence[str]) -> tuple[str, ...]:
    """Return group keys that join rows which any of several groupings joins.

    Args:
        groupings: For each grouping a key for each row; "" is a row of its own.
    """
    numbers = connect_groups(groupings)
    counts = Counter(numbers)
    return tuple(f"group-{number}" if counts[number] > 1 else "" for number in numbers)


def connect_groups(groupings: Sequence[Sequence[str]]) -> list[int]:
    """Return the number of each row's group: rows that share a key, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num_rows = len(groupings[0])
    firsts = []
    for keys in groupings:
        first: dict[str, int] = {}
        firsts += [first.setdefault(key, row) if key else row for row, key in enumerate(keys)]
    rows = np.tile(np.arange(num_rows), len(groupings))
    graph = coo_array((np.ones(len(rows)), (rows, firsts)), shape=(num_rows, num_rows))
    _, numbers = connected_components(graph, directed=False)
    found: list[int] = numbers.tolist()
    return found
