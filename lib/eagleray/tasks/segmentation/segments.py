"""Segments of an image: one for each object of a thing, and one for all pixels of each stuff label.

A segment map has the identifier of the segment of each pixel, from 1; pixels of the background have
0. Identifiers of things come first, best first, then those of stuff in the order of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.tasks.segmentation.class_maps import IGNORED
from eagleray.tasks.segmentation.panoptic_metrics import VOID, Segmentation

__all__ = ["Segment", "SegmentMap", "describe_counts", "find_segments", "segmentation_of"]

_FIRST_LABEL = 2**15  # identifier of the label 0 in a segmentation, above those of all objects

Numbers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of an image.

    Attributes:
        id: Its gray value in the segment map.
        label: Its label.
        score: Its score, from 0 to 1.
        area: Number of its pixels.
        x: Left edge of the smallest box around them, in pixels of the upright original.
        y: Upper edge of the box.
        width: Width of the box.
        height: Height of the box.
    """

    id: int
    label: str
    score: float
    area: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class SegmentMap:
    """The segments of one image.

    Attributes:
        ids: Identifier of the segment of each pixel, from 1; 0 for the background (height, width).
        labels: Index of the label of each identifier, int64 (1 + num_segments,).
        numbers: Number of the object of each identifier; 0 for stuff, int64 (1 + num_segments,).
    """

    ids: npt.NDArray[np.uint16]
    labels: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]


def find_segments(
    classes: Numbers,
    numbers: Numbers,
    object_labels: npt.NDArray[np.int64],
    is_thing: npt.NDArray[np.bool_],
) -> SegmentMap:
    """Return the segments of one image.

    A pixel of a thing that belongs to no object is one of the background.

    Args:
        classes: Index of the likeliest label of each pixel (height, width).
        numbers: Number of the object of each pixel, from 1; 0 for none (height, width).
        object_labels: Index of the label of each object (K,).
        is_thing: Whether the objects of each label are told apart, bool (C,); not for the first
            label, the background.
    """
    present = np.bincount(numbers.ravel(), minlength=1 + len(object_labels)) > 0
    present[0] = False
    objects = np.flatnonzero(present)
    seen = np.bincount(classes.ravel(), minlength=len(is_thing)) > 0
    stuff = np.flatnonzero(seen & ~is_thing & (np.arange(len(is_thing)) > 0))
    of_object = np.zeros(len(present), np.uint16)
    of_object[objects] = np.arange(1, 1 + len(objects))
    of_class = np.zeros(len(is_thing), np.uint16)
    of_class[stuff] = np.arange(1 + len(objects), 1 + len(objects) + len(stuff))
    ids = of_class[classes]
    np.copyto(ids, of_object[numbers], where=numbers > 0)
    return SegmentMap(
        ids,
        labels=np.concatenate([[0], object_labels[objects - 1], stuff]).astype(np.int64),
        numbers=np.concatenate([[0], objects, np.zeros(len(stuff))]).astype(np.int64),
    )


def segmentation_of(classes: Numbers, numbers: Numbers) -> Segmentation:
    """Return the segments of one image as metrics take them; the background is one of them.

    Args:
        classes: Index of the label of each pixel; `IGNORED` ones belong to no segment.
        numbers: Number of the object of each pixel of a thing; 0 for stuff (height, width).
    """
    ids = np.where(numbers > 0, numbers.astype(np.int32), classes.astype(np.int32) + _FIRST_LABEL)
    ids[classes == IGNORED] = VOID
    # Any pixel of a segment says its label; writing all of them is faster than a search for one.
    labels = np.full(_FIRST_LABEL + IGNORED + 1, IGNORED, np.uint8)
    labels[ids.ravel()] = classes.ravel()
    found = np.flatnonzero(labels != IGNORED)
    return Segmentation(ids, dict(zip(found.tolist(), labels[found].tolist(), strict=True)))


def describe_counts(labels: Sequence[str], counts: Sequence[float]) -> str:
    """Return how many segments of each label there are, such as `3 cell, 1 sky`."""
    pairs = zip(labels, counts, strict=True)
    return ", ".join(f"{count:,.0f} {label}" for label, count in pairs if count) or "no segments"
