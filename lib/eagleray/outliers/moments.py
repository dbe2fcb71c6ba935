"""Mean and covariance of vectors that arrive in batches, in memory for one covariance."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Moments"]

Doubles = npt.NDArray[np.float64]


class Moments:
    """The mean and the covariance of vectors, by the update of Chan, Golub and LeVeque (1983).

    Args:
        length: Length of a vector.

    Attributes:
        count: Number of vectors so far.
        mean: Their mean (length,).
    """

    def __init__(self, length: int) -> None:
        self.count = 0
        self.mean: Doubles = np.zeros(length)
        self._scatter: Doubles = np.zeros((length, length))

    def add(self, vectors: npt.NDArray[np.floating[Any]]) -> None:
        """Add vectors (N, length)."""
        batch = vectors.astype(np.float64)
        mean = batch.mean(axis=0)
        centered, shift = batch - mean, mean - self.mean
        total = self.count + len(batch)
        self._scatter += centered.T @ centered
        self._scatter += np.outer(shift, shift) * (self.count * len(batch) / total)
        self.mean = self.mean + shift * (len(batch) / total)
        self.count = total

    @property
    def covariance(self) -> Doubles:
        """The covariance (length, length), divided by the number of vectors."""
        return self._scatter / self.count
