"""Groups pixels into objects: each pixel belongs to the nearest centre of where its offset points.

It is the inference of Cheng et al. 2020 ("Panoptic-DeepLab"): the peaks of the map of centres are
objects, the label of an object is that of most of its pixels, and its score is the mean probability
of the label there times the height of the peak. What decides between equals is the place in the
image, so a batch and a single image give the same objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["NUM_PLACES", "FoundObjects", "group_pixels"]

NUM_PLACES = 3
"""Maps after the probabilities of the labels: centres, and offsets down and to the right."""

_WINDOW = 7  # pixels of the square in which a peak is the highest
_MIN_PEAK = 0.1
_MAX_DISTANCES = 2**18  # that are compared at a time

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FoundObjects:
    """The objects of one image, best first, and what its pixels are.

    Attributes:
        classes: Index of the likeliest label of each pixel, uint8 (h, w).
        numbers: Number of the object of each pixel, from 1; 0 for none, int32 (h, w).
        labels: Index of the label of each object, int64 (K,).
        scores: Score of each object, from 0 to 1, float32 (K,).
    """

    classes: npt.NDArray[np.uint8]
    numbers: npt.NDArray[np.int32]
    labels: Integers
    scores: Floats


def group_pixels(
    outputs: Floats, is_thing: npt.NDArray[np.bool_], *, max_objects: int
) -> FoundObjects:
    """Find the objects of one image.

    Args:
        outputs: Probabilities of C labels, the map of centres, and the offsets down and to the
            right in pixels, finite float32 (C + 3, h, w).
        is_thing: Whether the objects of each label are told apart, bool (C,).
        max_objects: Largest number of objects.
    """
    num_labels = len(is_thing)
    probabilities, centers = outputs[:num_labels], outputs[num_labels]
    classes = np.argmax(probabilities, axis=0).astype(np.uint8)
    y, x = np.nonzero(is_thing[classes])
    peaks = _peaks(centers, max_objects)
    if not len(y) or not len(peaks):
        none = np.zeros(classes.shape, np.int32)
        return FoundObjects(classes, none, np.empty(0, np.int64), np.empty(0, np.float32))
    pointed = np.stack([y, x], axis=1) + outputs[num_labels + 1 :, y, x].T
    owner = _nearest(pointed.astype(np.float32), peaks.astype(np.float32))
    found, owner = np.unique(owner, return_inverse=True)
    peaks = peaks[found]
    votes = np.bincount(owner * num_labels + classes[y, x], minlength=len(found) * num_labels)
    labels = votes.reshape(len(found), num_labels).argmax(axis=1)
    sums = np.bincount(owner, probabilities[labels[owner], y, x])
    heights = centers[peaks[:, 0], peaks[:, 1]].clip(0, 1)
    scores = (sums / np.bincount(owner) * heights).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(1, len(order) + 1)
    numbers = np.zeros(classes.shape, np.int32)
    numbers[y, x] = rank[owner]
    return FoundObjects(classes, numbers, labels[order], scores[order])


def _peaks(centers: Floats, most: int) -> Integers:
    """Return rows and columns of the peaks (K, 2), the highest first, then in reading order.

    Of equal heights in one window the first is the peak.
    """
    highest = cv2.dilate(centers, np.ones((_WINDOW, _WINDOW), np.uint8))
    candidates = np.flatnonzero((centers == highest) & (centers >= _MIN_PEAK))
    order = np.argsort(-centers.ravel()[candidates], kind="stable")
    places = np.stack(np.unravel_index(candidates[order], centers.shape), axis=1)
    is_taken, reach = np.zeros(centers.shape, bool), _WINDOW // 2
    kept: list[tuple[int, int]] = []
    for y, x in places.tolist():
        if not is_taken[y, x]:
            kept.append((y, x))
            is_taken[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = True
            if len(kept) == most:
                break
    return np.array(kept, np.int64).reshape(-1, 2)


def _nearest(points: Floats, centers: Floats) -> npt.NDArray[Any]:
    """Return the index of the nearest of K centers (K, 2) for each of P points (P, 2)."""
    nearest = np.empty(len(points), np.int64)
    count = max(1, _MAX_DISTANCES // len(centers))
    for start in range(0, len(points), count):
        part = points[start : start + count]
        squares = (part[:, :1] - centers[:, 0]) ** 2
        squares += (part[:, 1:] - centers[:, 1]) ** 2
        nearest[start : start + count] = squares.argmin(axis=1)
    return nearest
