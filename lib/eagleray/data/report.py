"""Defines the report on labelled data: classes, sizes, unreadable images, duplicates, warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eagleray.data.inspection import Fault
from eagleray.data.object_report import ObjectReport
from eagleray.data.split import SPLIT_NAMES

__all__ = ["DataReport", "Duplicates", "ImageRow", "Range"]


@dataclass(frozen=True, slots=True)
class ImageRow:
    """A row of the data.

    Attributes:
        uri: Location of the image.
        split: Split that the row is in.
        label: Label as written; for objects, how many there are of each class.
        readable: Whether the image can be read.
    """

    uri: str
    split: str
    label: str
    readable: bool = True

    def as_json(self) -> dict[str, str]:
        """Return the value for scripts."""
        return {"uri": self.uri, "split": self.split, "label": self.label}


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Images with the same bytes, or near-duplicates.

    Attributes:
        rows: Their rows.
    """

    rows: tuple[ImageRow, ...]

    @property
    def across_splits(self) -> bool:
        """Whether they are in more than one split."""
        return len({row.split for row in self.rows}) > 1

    @property
    def contradict(self) -> bool:
        """Whether they have more than one label."""
        return len({row.label for row in self.rows}) > 1

    def leak_into(self, split: str) -> tuple[ImageRow, ImageRow] | None:
        """Return one row in a split and one in a split before it; None without such a pair."""
        before = SPLIT_NAMES[: SPLIT_NAMES.index(split)]
        late = next((row for row in self.rows if row.split == split), None)
        early = next((row for row in self.rows if row.split in before), None)
        return None if late is None or early is None else (late, early)

    def as_json(self) -> list[dict[str, str]]:
        """Return the value for scripts."""
        return [row.as_json() for row in self.rows]


@dataclass(frozen=True, slots=True)
class Range:
    """Distribution of a number over the readable images.

    Attributes:
        min: Smallest value.
        median: Median.
        max: Largest value.
        edges: Edges of the bins of a histogram.
        counts: Number of images in each bin.
    """

    min: float
    median: float
    max: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def as_json(self) -> dict[str, float]:
        """Return the value for scripts."""
        return {"min": self.min, "median": self.median, "max": self.max}


@dataclass(frozen=True, slots=True)
class DataReport:
    """Summary of labelled data.

    Attributes:
        splits: Number of images in each split.
        classes: Number of images of each class in each split, the largest class first; empty for
            regression.
        sizes: `width`, `height` and `kilobytes` of the readable images.
        formats: Number of images of each format, the most common first.
        unreadable: Images that cannot be read.
        exact: Groups of images with the same bytes.
        near: Pairs of near-duplicates in different splits, the first thousand.
        leaked: For validation and test, the number of images that have an exact duplicate and of
            those that have a near-duplicate in a split before it.
        warnings: Sentences on what should be checked before training.
        notes: Sentences on how the data were read, and what was skipped.
        objects: What the labels say of objects; None if they are of whole images.
    """

    splits: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, Range]
    formats: Mapping[str, int]
    unreadable: tuple[Fault, ...]
    exact: tuple[Duplicates, ...]
    near: tuple[Duplicates, ...]
    leaked: Mapping[str, tuple[int, int]]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    objects: ObjectReport | None = None

    @property
    def num_images(self) -> int:
        """Number of rows."""
        return sum(self.splits.values())

    @property
    def imbalance(self) -> float | None:
        """Size of the largest class divided by that of the smallest; None without classes."""
        totals = [sum(counts.values()) for counts in self.classes.values()]
        return max(totals) / min(totals) if totals else None

    def as_json(self) -> dict[str, Any]:
        """Return the value for scripts."""
        return {
            "images": self.num_images,
            "splits": dict(self.splits),
            "classes": {label: dict(counts) for label, counts in self.classes.items()},
            "imbalance": self.imbalance,
            "sizes": {name: spread.as_json() for name, spread in self.sizes.items()},
            "formats": dict(self.formats),
            "unreadable": [
                {"uri": fault.uri, "reason": fault.reason, "message": fault.message}
                for fault in self.unreadable
            ],
            "exact_duplicates": [duplicates.as_json() for duplicates in self.exact],
            "near_duplicates_across_splits": [duplicates.as_json() for duplicates in self.near],
            "leaked": {
                split: {"exact_duplicates": exact, "near_duplicates": near}
                for split, (exact, near) in self.leaked.items()
            },
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            **({} if self.objects is None else {"objects": self.objects.as_json()}),
        }
