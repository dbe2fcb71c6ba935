"""Exact and near copies among many images, found without comparing each with each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from eagleray.datasets.inspection import Inspection

__all__ = ["NEAR", "find_near", "group_copies"]

NEAR = 4
"""Bits in which the difference hashes of near copies differ at most."""

_NUM_BANDS = 6  # of 64 bits; with NEAR bits changed, two of them at least are as they were
_MOST_AT_ONCE = 4_000_000  # pairs compared, to bound memory

Rows = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def find_near(hashes: Hashes) -> tuple[Rows, Rows]:
    """Return all pairs of hashes that differ in at most `NEAR` bits.

    Bits are dealt out to bands, and only hashes that agree in two whole bands are compared: among
    100,000 random hashes a few ten thousand pairs in place of five billion.

    Args:
        hashes: uint64 array (N,), each one once.

    Returns:
        Two arrays (M,) of the pairs' places, the first one lower, in ascending order.
    """
    bits = np.arange(64, dtype=np.uint64)
    # Every sixth bit: a band is spread over the picture, whose borders are often alike.
    masks = [
        np.bitwise_or.reduce(np.uint64(1) << bits[band::_NUM_BANDS]) for band in range(_NUM_BANDS)
    ]
    found = [np.empty((0, 2), np.int64)]
    for one, other in itertools.combinations(masks, 2):
        for left, right in _pairs_with_equal(hashes & (one | other)):
            near = np.bitwise_count(hashes[left] ^ hashes[right]) <= NEAR
            found.append(np.sort(np.stack([left[near], right[near]], axis=1), axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _pairs_with_equal(keys: Hashes) -> Iterator[tuple[Rows, Rows]]:
    """Yield the places of all pairs of equal keys, some millions at a time."""
    if not len(keys):
        return
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    ends = np.append(starts[1:], len(keys))
    # Each place in the order is paired with those after it in its run.
    num_after = np.repeat(ends, ends - starts) - np.arange(len(keys)) - 1
    bounds = np.cumsum(num_after)
    first = 0
    while first < len(keys):
        done = bounds[first - 1] if first else 0
        last = max(int(np.searchsorted(bounds, done + _MOST_AT_ONCE, side="right")), first + 1)
        counts = num_after[first:last]
        left = np.repeat(np.arange(first, last), counts)
        offsets = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield order[left], order[left + 1 + offsets]
        first = last


def group_copies(inspection: Inspection) -> tuple[str, ...]:
    """Return a key for each image that it shares with its exact and near copies; "" without any.

    Copies of copies are in one group. The keys are groups for `split_images`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num_rows = len(inspection)
    digests = inspection.table.column("sha256").to_pylist()
    hashes = inspection.table.column("dhash")
    rows = np.flatnonzero(hashes.is_valid().to_numpy())
    known, place = np.unique(hashes.drop_null().to_numpy(), return_inverse=True)
    # Nodes: the rows, then the hashes, to which rows are tied as hashes are to those near them.
    first_of = {digest: row for row, digest in reversed(list(enumerate(digests))) if digest}
    same = [first_of[digest] if digest else row for row, digest in enumerate(digests)]
    left, right = find_near(known)
    one = np.concatenate([np.arange(num_rows), rows, num_rows + left])
    other = np.concatenate([same, num_rows + place, num_rows + right]).astype(np.int64)
    num_nodes = num_rows + len(known)
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(num_nodes, num_nodes))
    _, numbers = connected_components(graph, directed=False)
    numbers = numbers[:num_rows]
    counts = np.bincount(numbers, minlength=1)
    return tuple(f"copies-{number}" if counts[number] > 1 else "" for number in numbers.tolist())
