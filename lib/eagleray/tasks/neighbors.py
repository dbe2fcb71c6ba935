"""Nearest neighbours among embeddings: recall at k, and the accuracy of a vote of neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["RECALL_AT", "NeighborScores", "nearest_neighbors", "score_neighbors"]

RECALL_AT = (1, 5, 10)
"""The numbers of neighbours that recall is measured at."""

_NUM_VOTERS = 20
_TEMPERATURE = 0.07
_ROWS_AT_ONCE = 1024

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NeighborScores:
    """How an image's neighbours agree with its label, for images that share theirs with another.

    Attributes:
        positions: Positions of these M images among all, ascending, int64 (M,).
        found_at: For each of `RECALL_AT` whether one of the nearest so many has the image's label,
            bool (M,).
        voted: Whether the vote of the neighbours is the image's label, bool (M,).
    """

    positions: Rows
    found_at: dict[int, npt.NDArray[np.bool_]]
    voted: npt.NDArray[np.bool_]


def score_neighbors(
    embeddings: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> NeighborScores:
    """Compare the label of each image with those of the images that are nearest to it.

    The vote is that of Wu et al. (2018): each of the 20 nearest counts `exp(similarity / 0.07)` for
    its label; of labels with the same votes the one of the nearer image wins.

    Args:
        embeddings: Embeddings of length 1, float32 (N, D).
        targets: A number for each image, the same for the same label, int64 (N,).
    """
    _, own, counts = np.unique(targets, return_inverse=True, return_counts=True)
    positions = np.flatnonzero(counts[own] > 1)
    count = min(max(_NUM_VOTERS, *RECALL_AT), len(targets) - 1)
    rows, similarities = nearest_neighbors(embeddings, count, positions)
    same = own[rows] == own[positions, None]
    found_at = {k: same[:, :k].any(axis=1) for k in RECALL_AT}
    voters = own[rows[:, :_NUM_VOTERS]]
    weights = np.exp((similarities[:, :_NUM_VOTERS] - 1) / _TEMPERATURE)
    voted = np.zeros(len(positions), bool)
    for place, (voter, weight) in enumerate(zip(voters, weights, strict=True)):
        names, first, which = np.unique(voter, return_index=True, return_inverse=True)
        votes = np.bincount(which, weight)
        winner = names[np.lexsort((first, -votes))[0]]
        voted[place] = winner == own[positions[place]]
    return NeighborScores(positions, found_at, voted)


def nearest_neighbors(
    embeddings: npt.NDArray[np.float32], count: int, positions: Rows
) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Return the nearest other images of some images, by the cosine of their embeddings.

    Args:
        embeddings: Embeddings of length 1, float32 (N, D).
        count: Number of neighbours K, below N.
        positions: Positions of M images among the N.

    Returns:
        Positions of the neighbours, nearest first and ties in their order, int64 (M, K), and the
        cosines, float32 (M, K).
    """
    rows = np.empty((len(positions), count), np.int64)
    similarities = np.empty((len(positions), count), np.float32)
    for start in range(0, len(positions), _ROWS_AT_ONCE):
        some = positions[start : start + _ROWS_AT_ONCE]
        cosines = embeddings[some] @ embeddings.T
        cosines[np.arange(len(some)), some] = -np.inf  # an image is not its own neighbour
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        rows[start : start + len(some)] = order
        similarities[start : start + len(some)] = np.take_along_axis(cosines, order, axis=1)
    return rows, similarities
