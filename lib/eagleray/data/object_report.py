"""Counts labelled objects: classes, sizes, empty images, boxes outside, duplicates, other sizes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eagleray.data.inspection import Inspection
from eagleray.data.split import Split
from eagleray.tasks.annotation import Annotation, TrueObject, parse_annotation
from eagleray.tasks.run_lengths import decode_runs

__all__ = ["Found", "ObjectClass", "ObjectReport", "count_objects", "describe_objects"]

_MEDIUM_AREA, _LARGE_AREA = 32**2, 96**2  # pixels, as COCO divides them
_MIN_DUPLICATE_IOU = 0.95
_ROUNDING = 0.5  # pixels that a box may exceed its image by
_ROWS_AT_ONCE = 512

Size = Literal["small", "medium", "large"]


@dataclass(slots=True)
class ObjectClass:
    """The objects of one class.

    Attributes:
        images: Number of images with such an object.
        objects: Number of objects, crowds included and void pixels left out.
        crowds: Number of crowds.
        small: Number of objects of fewer than 32² pixels, by their masks if they have one.
        medium: Number of objects of at least 32² and fewer than 96² pixels.
        large: Number of objects of at least 96² pixels.
    """

    images: int = 0
    objects: int = 0
    crowds: int = 0
    small: int = 0
    medium: int = 0
    large: int = 0


@dataclass(slots=True)
class Found:
    """Something to check: how often it is there, and the first place.

    Attributes:
        count: How many there are.
        first: The first image, and more on it; empty if there is none.
    """

    count: int = 0
    first: str = ""

    def add(self, count: int, place: str) -> None:
        """Count some at a place."""
        if count and not self.first:
            self.first = place
        self.count += count


@dataclass(frozen=True, slots=True)
class ObjectReport:
    """Summary of labelled objects.

    Attributes:
        classes: What there is of each class, the one of the most objects first.
        num_empty: Number of images without objects.
        num_masks: Number of objects with masks.
        outside: Boxes that are not inside of their images.
        duplicates: Objects with another one of the same label whose boxes have an intersection
            over union above 0.95.
        other_sizes: Readable images of another size, upright, than their annotation says.
    """

    classes: dict[str, ObjectClass] = field(default_factory=dict)
    num_empty: int = 0
    num_masks: int = 0
    outside: Found = field(default_factory=Found)
    duplicates: Found = field(default_factory=Found)
    other_sizes: Found = field(default_factory=Found)

    @property
    def num_objects(self) -> int:
        """Number of objects."""
        return sum(one.objects for one in self.classes.values())

    def sizes(self) -> dict[Size, int]:
        """Return the number of objects of each size."""
        every = self.classes.values()
        return {
            "small": sum(one.small for one in every),
            "medium": sum(one.medium for one in every),
            "large": sum(one.large for one in every),
        }

    def warnings(self) -> Iterator[str]:
        """Yield sentences on what should be checked before training."""
        if self.other_sizes.count:
            yield (
                f"{_count(self.other_sizes.count, 'image')} not of the size that the labels say; "
                f"the first is {self.other_sizes.first}: labels of images that were turned by a "
                "camera's orientation, or resized, are in the wrong places; label the upright "
                "images."
            )
        if self.outside.count:
            yield (
                f"{_count(self.outside.count, 'box', 'boxes')} not inside of the image; the first "
                f"is in {self.outside.first}: correct or remove them."
            )
        if self.duplicates.count:
            yield (
                f"{_count(self.duplicates.count, 'object')} labelled twice (the same label, an "
                f"intersection over union above {_MIN_DUPLICATE_IOU}); the first is in "
                f"{self.duplicates.first}: remove one of the two."
            )

    def as_json(self) -> dict[str, Any]:
        """Return the value for scripts."""
        return {
            "objects": self.num_objects,
            "masks": self.num_masks,
            "empty_images": self.num_empty,
            "sizes": self.sizes(),
            "classes": {label: asdict(one) for label, one in self.classes.items()},
            "boxes_outside": asdict(self.outside),
            "duplicates": asdict(self.duplicates),
            "other_sizes": asdict(self.other_sizes),
        }


def _count(count: int, one: str, several: str | None = None) -> str:
    return f"1 {one} is" if count == 1 else f"{count:,} {several or one + 's'} are"


def describe_objects(text: str) -> str:
    """Return the labels of an image in one line, as in `3 cell, 1 debris`, for pages.

    Raises:
        InputError: If the text is not a label of objects.
    """
    counts = Counter(one.label for one in parse_annotation(text).known)
    return ", ".join(f"{count} {label}" for label, count in counts.items()) or "no objects"


def count_objects(split: Split, inspection: Inspection) -> ObjectReport:
    """Count the objects of all splits.

    Args:
        split: The data, whose labels are objects.
        inspection: Inspection of all their images, which has their upright sizes.

    Raises:
        InputError: If a label is not that of objects.
    """
    sizes = _upright_sizes(inspection)
    classes: defaultdict[str, ObjectClass] = defaultdict(ObjectClass)
    outside, duplicates, other_sizes = Found(), Found(), Found()
    num_empty = num_masks = 0
    for images in split.by_name.values():
        for uri, text in zip(images.uris, images.labels, strict=True):
            annotation = parse_annotation(text)
            num_empty += not annotation.known
            num_masks += sum(one.mask is not None for one in annotation.known)
            for label in annotation.labels:
                classes[label].images += 1
            for one in annotation.known:
                _add(classes[one.label], one)
            outside.add(_num_outside(annotation), uri)
            duplicates.add(_num_duplicates(annotation.objects), uri)
            size = sizes.get(uri, (annotation.width, annotation.height))
            if size != (annotation.width, annotation.height):
                said = f"{annotation.width} x {annotation.height}"
                other_sizes.add(1, f"{uri}, of {size[0]} x {size[1]} pixels and not {said}")
    ordered = sorted(classes.items(), key=lambda item: (-item[1].objects, item[0]))
    return ObjectReport(dict(ordered), num_empty, num_masks, outside, duplicates, other_sizes)


def _upright_sizes(inspection: Inspection) -> Mapping[str, tuple[int, int]]:
    columns = (inspection.table.column(name).to_pylist() for name in ("width", "height"))
    return {
        uri: (width, height)
        for uri, width, height in zip(inspection.uris, *columns, strict=True)
        if width is not None
    }


def _add(found: ObjectClass, one: TrueObject) -> None:
    area = one.width * one.height
    if one.mask is not None:
        area = float(decode_runs(one.mask.counts, *one.mask.size)[1::2].sum())
    found.objects += 1
    found.crowds += one.crowd
    found.small += area < _MEDIUM_AREA
    found.medium += _MEDIUM_AREA <= area < _LARGE_AREA
    found.large += area >= _LARGE_AREA


def _num_outside(annotation: Annotation) -> int:
    return sum(
        one.x < -_ROUNDING
        or one.y < -_ROUNDING
        or one.x + one.width > annotation.width + _ROUNDING
        or one.y + one.height > annotation.height + _ROUNDING
        for one in annotation.objects
    )


def _num_duplicates(objects: Sequence[TrueObject]) -> int:
    """Return how many objects have an earlier one of their label in nearly the same place."""
    by_label: defaultdict[str, list[TrueObject]] = defaultdict(list)
    for one in objects:
        if not one.crowd:
            by_label[one.label].append(one)
    return sum(_num_repeated(group) for group in by_label.values() if len(group) > 1)


def _num_repeated(objects: Sequence[TrueObject]) -> int:
    corners = np.array(
        [(one.x, one.y, one.x + one.width, one.y + one.height) for one in objects], np.float64
    )
    num_repeated = 0
    for start in range(0, len(corners), _ROWS_AT_ONCE):
        overlaps = _intersections_over_unions(corners[start : start + _ROWS_AT_ONCE], corners)
        earlier = np.tril(overlaps, start - 1)
        num_repeated += int((earlier > _MIN_DUPLICATE_IOU).any(axis=1).sum())
    return num_repeated


def _intersections_over_unions(
    boxes: npt.NDArray[np.float64], others: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the matrix (N, M) of boxes (N, 4) and others (M, 4), as corners."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas, other_areas = ((some[:, 2:] - some[:, :2]).prod(axis=1) for some in (boxes, others))
    union = areas[:, None] + other_areas[None, :] - shared
    return np.asarray(shared / np.maximum(union, 1e-9))
