"""Finds exact duplicates and near-duplicates among many images without comparing all pairs.

Two pictures are near-duplicates if they are closer to each other than any two of their data set are
by chance. That distance depends on the data: photographs fill a space of many dimensions, in which
no two come near by chance; handwritten digits fill one of few dimensions, in which many do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eagleray.data.inspection import THUMBNAIL_SIDE, Inspection

__all__ = [
    "NEAR_BITS",
    "NearDuplicates",
    "find_near_duplicates",
    "group_duplicates",
    "pairs_with_near",
]

NEAR_BITS = 10
"""Maximum number of differing hash bits of two pictures that are compared."""

_NUM_BANDS = 12  # of 64 bits; with NEAR_BITS changed, at least two bands are unchanged
_MAX_PAIRS = 4_000_000  # pairs of hashes compared at once, to bound memory
_PICTURES_AT_ONCE = 16_384  # pictures compared, to bound memory

_REFERENCE = 2048  # pictures drawn at random to estimate the data's own distances
_NEIGHBOURS = 10  # the distance of the last neighbour is the scale around a picture
_CHANCE_PAIRS = 0.1  # expected number of pairs of a data set within the limit by chance
_CLOSEST = 0.25  # of the scale; distances are squares, so at most half as far apart
_DENSEST = 0.1  # of the median scale, as the scale around duplicates is small
_FEW = 2 * _NEIGHBOURS  # pictures, too few to estimate a scale
_ALIKE = 0.02  # limit for few pictures; of pictures so near, one is drawn

Rows = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Thumbnails = npt.NDArray[np.uint8]
Distances = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Images that are near-duplicates.

    Attributes:
        pictures: Number of each image's picture, which images with the same thumbnail share; -1
            for images that cannot be compared, such as flat ones.
        left, right: Pairs of pictures that are near-duplicates, each pair once.
    """

    pictures: Rows
    left: Rows
    right: Rows


def find_near_duplicates(inspection: Inspection) -> NearDuplicates:
    """Compare the thumbnails of an inspection."""
    column = inspection.table.column("thumbnail")
    rows = np.flatnonzero(column.is_valid().to_numpy())
    pictures = np.full(len(inspection), -1, np.int64)
    content = b"".join(column.drop_null().to_pylist())
    size = THUMBNAIL_SIDE**2
    distinct, pictures[rows] = np.unique(np.frombuffer(content, f"V{size}"), return_inverse=True)
    thumbnails = np.frombuffer(distinct.tobytes(), np.uint8).reshape(-1, size)
    left, right = _near_pairs(thumbnails)
    return NearDuplicates(pictures, left, right)


def group_duplicates(inspection: Inspection) -> tuple[str, ...]:
    """Return a group key for each image, shared with its exact and near-duplicates; "" if none.

    Duplicates of duplicates are in one group. The keys are groups for `split_images`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num_rows = len(inspection)
    digests = inspection.table.column("sha256").to_pylist()
    first_of = {digest: row for row, digest in reversed(list(enumerate(digests))) if digest}
    same = [first_of[digest] if digest else row for row, digest in enumerate(digests)]
    near = find_near_duplicates(inspection)
    rows = np.flatnonzero(near.pictures >= 0)
    # Nodes are the rows, then the pictures. Edges tie rows to their pictures, and near pictures.
    one = np.concatenate([np.arange(num_rows), rows, num_rows + near.left])
    other = np.concatenate([same, num_rows + near.pictures[rows], num_rows + near.right])
    num_nodes = num_rows + int(near.pictures.max(initial=-1)) + 1
    edges = (np.ones(len(one)), (one, other.astype(np.int64)))
    graph = coo_array(edges, shape=(num_nodes, num_nodes))
    _, numbers = connected_components(graph, directed=False)
    numbers = numbers[:num_rows]
    counts = np.bincount(numbers, minlength=1)
    return tuple(f"group-{number}" if counts[number] > 1 else "" for number in numbers.tolist())


# --- distance limits -------------------------------------------------------------------------


def _near_pairs(thumbnails: Thumbnails) -> tuple[Rows, Rows]:
    """Return the pairs of thumbnails (N, 256) that are nearer than pairs are by chance."""
    limits = _limits(thumbnails)
    found = [np.empty((0, 2), np.int64)]
    for left, right in pairs_with_near(_hashes(thumbnails)):
        for start in range(0, len(left), _PICTURES_AT_ONCE):
            one, other = (rows[start : start + _PICTURES_AT_ONCE] for rows in (left, right))
            products = np.einsum("nd,nd->n", _unit(thumbnails[one]), _unit(thumbnails[other]))
            near = 1 - products <= np.minimum(limits[one], limits[other])
            found.append(np.sort(np.stack([one[near], other[near]], axis=1), axis=1))
    pairs = np.concatenate(found)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return pairs[:, 0], pairs[:, 1]


def _unit(thumbnails: Thumbnails) -> Distances:
    """Return thumbnails without their brightness and contrast, as vectors of length 1.

    The distance of two is one minus their product: half their squared Euclidean distance.
    """
    vectors = thumbnails.astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.maximum(lengths, 1e-6)
    return vectors


def _limits(thumbnails: Thumbnails) -> Distances:
    """Return the distance from each picture within which another one is its near-duplicate.

    Around a picture, the share of its neighbours within a radius grows with the radius to the power
    of the data's dimension. That dimension is estimated from how the distances of the fifth and the
    tenth neighbour differ, after the two-neighbour estimator of Facco et al. (2017), which
    duplicates would mislead. It yields the distance of the nearest pair of the data set by chance.
    """
    num_pictures = len(thumbnails)
    drawn = _draw(thumbnails)
    if len(drawn) <= _FEW:
        return np.full(num_pictures, _ALIKE, np.float32)
    nearer, scale = _distances_to_neighbours(thumbnails, drawn)
    growth = np.median(np.log(scale / nearer))
    dimension = 2 * math.log(2) / max(float(growth), 1e-6)
    neighbours = _NEIGHBOURS * num_pictures / len(drawn)  # within the scale, of all pictures
    volume = 2 * _CHANCE_PAIRS / (num_pictures * neighbours)
    share = min(_CLOSEST, volume ** (2 / dimension))
    limits: Distances = np.maximum(scale, _DENSEST * np.median(scale)).astype(np.float32)
    return limits * np.float32(share)


def _draw(thumbnails: Thumbnails) -> Rows:
    """Draw pictures at random, only one of those that are alike, such as frames of a film."""
    drawn = np.random.default_rng(0).permutation(len(thumbnails))[:_REFERENCE]
    vectors = _unit(thumbnails[drawn])
    alike = 1 - vectors @ vectors.T <= _ALIKE
    kept = np.ones(len(drawn), np.bool_)
    for index in range(len(drawn)):
        if kept[index]:
            kept[index + 1 :] &= ~alike[index, index + 1 :]
    found: Rows = drawn[kept]
    return found


def _distances_to_neighbours(thumbnails: Thumbnails, drawn: Rows) -> tuple[Distances, Distances]:
    """Return each picture's distances to its fifth and its tenth neighbour among those drawn."""
    reference = _unit(thumbnails[drawn])
    place = np.full(len(thumbnails), -1)
    place[drawn] = np.arange(len(drawn))
    middle, last = _NEIGHBOURS // 2 - 1, _NEIGHBOURS - 1
    found = []
    for start in range(0, len(thumbnails), _PICTURES_AT_ONCE):
        block = slice(start, start + _PICTURES_AT_ONCE)
        distances = 1 - _unit(thumbnails[block]) @ reference.T
        itself = np.flatnonzero(place[block] >= 0)
        distances[itself, place[block][itself]] = np.inf
        found.append(np.partition(distances, [middle, last], axis=1)[:, [middle, last]])
    nearest = np.maximum(np.concatenate(found), 1e-6)
    return nearest[:, 0], nearest[:, 1]


# --- candidate pairs -----------------------------------------------------------------------


def _hashes(thumbnails: Thumbnails) -> Hashes:
    """Return a 64-bit perceptual hash: the lowest frequencies that are above their median."""
    from scipy.fft import dctn

    found = [np.empty(0, np.uint64)]
    for start in range(0, len(thumbnails), _PICTURES_AT_ONCE):
        block = thumbnails[start : start + _PICTURES_AT_ONCE].astype(np.float32)
        waves = dctn(block.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE), axes=(1, 2))
        lowest = waves[:, :8, :8].reshape(-1, 64)
        bits = lowest > np.median(lowest[:, 1:], axis=1, keepdims=True)
        found.append(np.packbits(bits, axis=1).view(np.uint64)[:, 0])
    return np.concatenate(found)


def pairs_with_near(hashes: Hashes, *, max_pairs: int = _MAX_PAIRS) -> Iterator[tuple[Rows, Rows]]:
    """Yield the indices of all pairs of hashes that differ in at most `NEAR_BITS` bits, each once.

    Bits are dealt out to bands, and only hashes that agree in two whole bands are compared: among
    100,000 random hashes some two hundred million pairs in place of five billion.
    """
    bits = np.arange(64, dtype=np.uint64)
    # Every twelfth bit: a band is spread over the frequencies.
    masks = [
        np.bitwise_or.reduce(np.uint64(1) << bits[band::_NUM_BANDS]) for band in range(_NUM_BANDS)
    ]
    for one, other in itertools.combinations(range(_NUM_BANDS), 2):
        for left, right in _pairs_with_equal(hashes & (masks[one] | masks[other]), max_pairs):
            different = hashes[left] ^ hashes[right]
            near = np.bitwise_count(different) <= NEAR_BITS
            for band in range(other):  # these two must be the first in which they agree
                if band != one:
                    near &= (different & masks[band]) != 0
            yield left[near], right[near]


def _pairs_with_equal(keys: Hashes, max_pairs: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield the indices of all pairs of equal keys, about `max_pairs` at a time."""
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
        last = max(int(np.searchsorted(bounds, done + max_pairs, side="right")), first + 1)
        counts = num_after[first:last]
        left = np.repeat(np.arange(first, last), counts)
        offsets = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield order[left], order[left + 1 + offsets]
        first = last
