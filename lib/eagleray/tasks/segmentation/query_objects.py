"""Makes maps of scores, objects and segments of mask queries, as transformers does.

The counterparts are `post_process_semantic_segmentation`, `post_process_instance_segmentation` and
`post_process_panoptic_segmentation` of Mask2Former's image processor. Images are enlarged in strips
of rows, so memory does not grow with the number of queries times that of the original's pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eagleray.tasks.segmentation.class_maps import enlarged_strips
from eagleray.tasks.segmentation.mask_queries import MaskQueries

__all__ = [
    "FoundSegments",
    "ScoredMask",
    "find_query_segments",
    "find_scored_masks",
    "label_scores",
]

_MIN_SCORE = 0.5  # of a query that becomes a segment
_MIN_PROBABILITY = 0.5  # of a pixel of a mask
_MIN_SHARE = 0.8  # of a query's own pixels that other queries must have left to it
_NO_PIXELS = 1e-6  # beside the number of pixels of a mask, which may be 0

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ScoredMask:
    """The mask of one object.

    Attributes:
        label: Index of its label.
        score: Its score, from 0 to 1.
        pixels: Whether each pixel of the original belongs to it, bool (height, width).
    """

    label: int
    score: float
    pixels: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class FoundSegments:
    """The segments of one image, each of one query.

    Attributes:
        numbers: Number of the segment of each pixel, from 1; 0 for none, uint16 (height, width).
        labels: Index of the label of each segment, int64 (K,).
        scores: Score of each segment, from 0 to 1, float32 (K,).
    """

    numbers: npt.NDArray[np.uint16]
    labels: npt.NDArray[np.int64]
    scores: Floats


def label_scores(queries: MaskQueries, outputs: Floats) -> Floats:
    """Return the score of each label at each pixel of the masks, float32 (C, h, w).

    It is the sum over queries of the probability of the label times that of the mask.
    """
    probabilities, masks = queries.split(outputs)
    wide = _sigmoid(queries.enlarge(masks))
    sums = probabilities[:, :-1].T @ wide.reshape(len(wide), -1)
    return np.ascontiguousarray(sums.reshape(-1, *wide.shape[1:]), np.float32)


def find_scored_masks(
    queries: MaskQueries, outputs: Floats, height: int, width: int, min_score: float
) -> Iterator[ScoredMask]:
    """Yield the objects of one image, best first; masks may overlap.

    As many pairs of a query and a label as there are queries are taken, those of the highest
    probabilities. The score is the probability times the mean probability of the mask's pixels.

    Args:
        queries: Form of the outputs.
        outputs: Activated outputs of the image.
        height: Height of the original in pixels.
        width: Width of the original in pixels.
        min_score: Lowest score of an object.
    """
    probabilities, masks = queries.split(outputs)
    labels_only = probabilities[:, :-1]
    best = np.argsort(-labels_only, axis=None, kind="stable")[: queries.count]
    places, labels = np.unravel_index(best, labels_only.shape)
    wide = queries.enlarge(masks)
    inside = wide > 0
    sizes = inside.sum(axis=(1, 2))
    means = (_sigmoid(wide) * inside).sum(axis=(1, 2)) / (sizes + _NO_PIXELS)
    scores = labels_only[places, labels] * means[places]
    rows, columns = (
        _nearest(side, own) for side, own in zip((height, width), wide.shape[1:], strict=True)
    )
    for index in np.argsort(-scores, kind="stable").tolist():
        if scores[index] >= min_score and sizes[places[index]]:
            pixels = inside[places[index]][rows[:, None], columns[None, :]]
            if pixels.any():
                yield ScoredMask(int(labels[index]), float(scores[index]), pixels)


def find_query_segments(
    queries: MaskQueries, outputs: Floats, height: int, width: int
) -> FoundSegments:
    """Return the segments of one image, which do not overlap, in the order of their queries.

    A pixel belongs to the query of the highest product of score and mask. A query is no segment if
    its label is that of no object, its score is 0.5 or less, or others have 20 % of its pixels.

    Args:
        queries: Form of the outputs.
        outputs: Activated outputs of the image.
        height: Height of the original in pixels.
        width: Width of the original in pixels.
    """
    probabilities, masks = queries.split(outputs)
    labels, scores = probabilities.argmax(axis=1), probabilities.max(axis=1)
    kept = np.flatnonzero((labels < probabilities.shape[1] - 1) & (scores > _MIN_SCORE))
    numbers = np.zeros((height, width), np.uint16)
    if not len(kept):
        return FoundSegments(numbers, labels[:0], scores[:0])
    areas, own_areas = np.zeros((2, len(kept)), np.int64)
    for strip, values in enlarged_strips(_sigmoid(queries.enlarge(masks[kept])), height, width):
        weighted = values * scores[kept, None, None]
        owner = weighted.argmax(axis=0)
        numbers[strip] = owner + 1
        areas += np.bincount(owner.ravel(), minlength=len(kept))
        own_areas += (weighted >= _MIN_PROBABILITY).sum(axis=(1, 2))
    exists = (areas > 0) & (own_areas > 0) & (areas > _MIN_SHARE * own_areas)
    renumbered = np.zeros(1 + len(kept), np.uint16)
    renumbered[1:][exists] = np.arange(1, 1 + exists.sum())
    found = kept[exists]
    return FoundSegments(renumbered[numbers], labels[found], scores[found])


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-values.clip(-80, 80))), np.float32)


def _nearest(side: int, own: int) -> npt.NDArray[np.int64]:
    """Return the pixel of a mask for each of a side of the original."""
    return (
        (np.arange(side, dtype=np.float32) * np.float32(own / side))
        .astype(np.int64)
        .clip(max=own - 1)
    )
