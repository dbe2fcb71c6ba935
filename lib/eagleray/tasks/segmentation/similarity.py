"""How alike two segmentations of one image are, from 0 to 1, such as those of two runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.tasks.segmentation.class_maps import ClassMap

__all__ = ["ScoredRegions", "dice_of_maps", "similarity_of_regions"]

_MATCHES = 0.5  # intersection over union above which two regions are the same object


def dice_of_maps(one: ClassMap, other: ClassMap) -> float:
    """Return the Dice coefficient of the pixels that are not background, labels together.

    It is 1 where neither has any, and 0 for maps of different sizes.

    Args:
        one: Index of the label of each pixel, 0 for the background (height, width).
        other: Another such map.
    """
    if one.shape != other.shape:
        return 0.0
    total = np.count_nonzero(one) + np.count_nonzero(other)
    shared = np.count_nonzero((one == other) & (one > 0))
    return 2 * shared / total if total else 1.0


@dataclass(frozen=True, slots=True)
class ScoredRegions:
    """Regions of one image that do not overlap, each with a label and a score.

    Attributes:
        numbers: Number of the region of each pixel, from 1; 0 for none (height, width).
        labels: Label of each of the K regions.
        scores: Score of each of the K regions.
    """

    numbers: npt.NDArray[np.integer[Any]]
    labels: tuple[str, ...]
    scores: tuple[float, ...]


def similarity_of_regions(one: ScoredRegions, other: ScoredRegions) -> float:
    """Return the panoptic quality of one image's regions against another's, with their scores.

    Regions of one label are the same if their intersection over union (IoU) is above 0.5. The sum
    of their IoU, each times 1 less the difference of the scores, is divided by the mean number of
    regions of both sides. It is 1 where neither has any, and 0 for images of different sizes.
    """
    counts = len(one.labels), len(other.labels)
    if not any(counts):
        return 1.0
    if one.numbers.shape != other.numbers.shape or not all(counts):
        return 0.0
    overlaps = _overlaps(one.numbers, other.numbers, *counts)
    same_label = np.array(one.labels)[:, None] == np.array(other.labels)[None, :]
    apart = np.abs(np.array(one.scores)[:, None] - np.array(other.scores)[None, :])
    is_same = (overlaps > _MATCHES) & same_label
    return float((overlaps * (1 - apart))[is_same].sum() / (sum(counts) / 2))


def _overlaps(
    one: npt.NDArray[np.integer[Any]], other: npt.NDArray[np.integer[Any]], rows: int, columns: int
) -> npt.NDArray[np.float64]:
    """Return the intersection over union of all pairs of regions (rows, columns)."""
    pairs = one.ravel().astype(np.int64) * (columns + 1) + other.ravel()
    pixels = np.bincount(pairs, minlength=(rows + 1) * (columns + 1))
    pixels = pixels.reshape(rows + 1, columns + 1)
    sizes = pixels.sum(axis=1)[1:, None] + pixels.sum(axis=0)[None, 1:]
    shared = pixels[1:, 1:]
    overlaps: npt.NDArray[np.float64] = shared / np.maximum(sizes - shared, 1)
    return overlaps
