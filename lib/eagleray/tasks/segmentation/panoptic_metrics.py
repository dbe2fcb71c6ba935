"""Panoptic quality: how well segments are recognized, and how well they are outlined.

Kirillov et al., "Panoptic Segmentation", 2019. A predicted and a true segment of one label match if
their IoU is above 0.5; no other segment can then match either of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.tasks.label_metrics import Floats

__all__ = [
    "VOID",
    "PanopticCounts",
    "Segmentation",
    "count_segments",
    "panoptic_metrics",
    "resampled_panoptic_metrics",
]

VOID = 0
"""Identifier of the pixels that belong to no segment."""

_IOU = 0.5
_MAX_VOID = 0.5
_MAX_PIXELS = 2**20  # that are counted at a time

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The segments of one image.

    Attributes:
        ids: Identifier of the segment of each pixel, or `VOID`, integers (H, W).
        labels: Label index of each segment, by its identifier.
    """

    ids: npt.NDArray[np.integer[Any]]
    labels: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class PanopticCounts:
    """Matched and unmatched segments of each label, of one image, or of each of several.

    Attributes:
        iou: Sum of the IoUs of the matches, float64 (…, C).
        matched: Number of matches, float64 (…, C).
        false_positives: Number of predicted segments without a match, float64 (…, C).
        false_negatives: Number of true segments without a match, float64 (…, C).
    """

    iou: Doubles
    matched: Doubles
    false_positives: Doubles
    false_negatives: Doubles

    @classmethod
    def stack(cls, images: Sequence[PanopticCounts]) -> PanopticCounts:
        """Return the counts of N images, each (C,), as one (N, C)."""
        return cls(
            np.stack([one.iou for one in images]),
            np.stack([one.matched for one in images]),
            np.stack([one.false_positives for one in images]),
            np.stack([one.false_negatives for one in images]),
        )

    def weighted(self, weights: Floats) -> PanopticCounts:
        """Return the sums (…, C) of the counts (N, C), by how often each image counts (…, N)."""
        return PanopticCounts(
            weights @ self.iou,
            weights @ self.matched,
            weights @ self.false_positives,
            weights @ self.false_negatives,
        )

    @property
    def segmentation_quality(self) -> Floats:
        """Mean IoU of the matches (…, C); 0 without any."""
        return _ratio(self.iou, self.matched)

    @property
    def recognition_quality(self) -> Floats:
        """F1 of the segments (…, C); NaN for a label without segments."""
        return _ratio(self.matched, self._size, otherwise=np.nan)

    @property
    def panoptic_quality(self) -> Floats:
        """The product of both (…, C); NaN for a label without segments."""
        return _ratio(self.iou, self._size, otherwise=np.nan)

    @property
    def _size(self) -> Floats:
        return self.matched + (self.false_positives + self.false_negatives) / 2


def count_segments(predicted: Segmentation, true: Segmentation, num_labels: int) -> PanopticCounts:
    """Match the segments of one image.

    Pixels that are void in the truth do not count for a predicted segment. A predicted segment of
    which more than half is void is no false positive.

    Args:
        predicted: The prediction.
        true: The truth, of the same size.
        num_labels: Number of labels C.

    Returns:
        The counts of the labels (C,).

    Raises:
        InputError: If the sizes differ, or a segment in the maps has no label.
    """
    if predicted.ids.shape != true.ids.shape:
        raise InputError(
            f"The prediction has {predicted.ids.shape} pixels and the truth {true.ids.shape}; pass "
            "maps of the same size."
        )
    found, label = _segments(predicted, num_labels)
    real, true_label = _segments(true, num_labels)
    shared = _shared_pixels(predicted.ids, true.ids, found, real)
    in_void = shared[:, real == VOID].sum(axis=1)
    area, true_area = shared.sum(axis=1), shared.sum(axis=0)
    union = (area - in_void)[:, None] + true_area - shared
    same = label[:, None] == true_label
    can_match = same & (found != VOID)[:, None] & (real != VOID)
    iou = np.where(can_match, _ratio(shared, union), 0.0)
    rows, columns = np.nonzero(iou > _IOU)
    unmatched = (found != VOID) & (in_void <= _MAX_VOID * area)
    unmatched[rows] = False
    missed = real != VOID
    missed[columns] = False
    return PanopticCounts(
        np.bincount(label[rows], iou[rows, columns], num_labels).astype(np.float64),
        np.bincount(label[rows], minlength=num_labels).astype(np.float64),
        np.bincount(label[unmatched], minlength=num_labels).astype(np.float64),
        np.bincount(true_label[missed], minlength=num_labels).astype(np.float64),
    )


def panoptic_metrics(
    counts: PanopticCounts,
    labels: Sequence[str],
    groups: Mapping[str, npt.NDArray[np.bool_]] | None = None,
) -> dict[str, float]:
    """Return `pq`, `sq` and `rq` of all labels, then of groups of labels, then of each label.

    They are means over the labels with segments, predicted or true. A group or a label without
    true segments is left out; without any true segments there are no metrics.

    Args:
        counts: The counts of each image (N, C).
        labels: Names of the C labels.
        groups: Whether each label is in a group, bool (C,), by name: `pq_things` and so on.
    """
    sums = counts.weighted(np.ones(len(counts.iou)))
    is_true = sums.matched + sums.false_negatives > 0
    seen = np.flatnonzero(is_true).tolist()
    if not seen:
        return {}
    found = {name: float(value) for name, value in _means(sums).items()}
    for group, is_member in (groups or {}).items():
        if (is_true & is_member).any():
            means = _means(sums, is_member)
            found |= {f"{name}_{group}": float(value) for name, value in means.items()}
    for name, values in _qualities(sums).items():
        found |= {f"{name}[{labels[index]}]": float(values[index]) for index in seen}
    return found


def resampled_panoptic_metrics(counts: PanopticCounts) -> Callable[[Floats], dict[str, Floats]]:
    """Return a function from weights of the images (R, N) to `pq`, `sq` and `rq`, each (R,).

    Args:
        counts: The counts of each image (N, C).
    """
    return lambda weights: _means(counts.weighted(weights))


def _qualities(counts: PanopticCounts) -> dict[str, Floats]:
    """Return the qualities of each label by name (…, C)."""
    return {
        "pq": counts.panoptic_quality,
        "sq": counts.segmentation_quality,
        "rq": counts.recognition_quality,
    }


def _means(counts: PanopticCounts, among: npt.NDArray[np.bool_] | None = None) -> dict[str, Floats]:
    """Return the means over labels with segments (…), or over some; NaN if there are none."""
    seen = ~np.isnan(counts.panoptic_quality)
    if among is not None:
        seen &= among
    return {
        name: _ratio(np.where(seen, values, 0.0).sum(axis=-1), seen.sum(axis=-1), np.nan)
        for name, values in _qualities(counts).items()
    }


def _segments(segmentation: Segmentation, num_labels: int) -> tuple[Integers, Integers]:
    """Return the identifiers in the map, rising, and their labels; -1 for void."""
    parts = [np.unique(part) for part in _parts(segmentation.ids)]
    ids = np.unique(np.concatenate(parts)).astype(np.int64)
    labels = [-1 if one == VOID else segmentation.labels.get(one) for one in ids.tolist()]
    for one, label in zip(ids.tolist(), labels, strict=True):
        if label is None or label >= num_labels:
            raise InputError(
                f"Segment {one} has {'no label' if label is None else f'label index {label}'}; "
                f"give each segment in the map one of the {num_labels} labels."
            )
    return ids, np.array(labels, np.int64)


def _shared_pixels(
    predicted: npt.NDArray[np.integer[Any]],
    true: npt.NDArray[np.integer[Any]],
    found: Integers,
    real: Integers,
) -> Integers:
    """Count the pixels that each predicted and each true segment share (P, T)."""
    counts = np.zeros(len(found) * len(real), np.int64)
    for own, other in zip(_parts(predicted), _parts(true), strict=True):
        cells = np.searchsorted(found, own) * len(real) + np.searchsorted(real, other)
        counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(len(found), len(real))


def _parts(ids: npt.NDArray[np.integer[Any]]) -> Iterator[npt.NDArray[np.integer[Any]]]:
    """Yield the pixels of a map, a part at a time."""
    flat = ids.ravel()
    for start in range(0, max(1, len(flat)), _MAX_PIXELS):
        yield flat[start : start + _MAX_PIXELS]


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any], otherwise: float = 0.0) -> Floats:
    filled = np.full(np.shape(above), otherwise)
    return np.asarray(np.divide(above, below, out=filled, where=below > 0))
