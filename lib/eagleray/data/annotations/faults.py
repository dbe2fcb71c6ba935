"""Counts what is invalid in labelled objects, and refuses data in which too much is.

An invalid object or image is left out, counted by kind, and named in a note of the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum
from typing import Literal

from eagleray.core.errors import InputError

__all__ = ["AnnotationFaults", "FaultKind"]


class FaultKind(Enum):
    """A kind of fault: the words for one and for several, and what is counted.

    `object` faults are objects that are left out, `image` faults are images or files of labels that
    are left out. `kept` and `unused` things are only reported.
    """

    NO_AREA = ("box without an area", "boxes without an area", "object")
    OUTSIDE = ("box outside of its image", "boxes outside of their images", "object")
    UNKNOWN_LABEL = (
        "label that is not in the list of classes",
        "labels that are not in the list of classes",
        "object",
    )
    MASK_SIZE = (
        "mask that has not the size of its image",
        "masks that have not the size of their images",
        "object",
    )
    BAD_MASK = ("mask that is damaged or empty", "masks that are damaged or empty", "object")
    BAD_POLYGON = (
        "polygon of fewer than three points",
        "polygons of fewer than three points",
        "object",
    )
    UNREADABLE_OBJECT = ("object that cannot be read", "objects that cannot be read", "object")
    NO_SUCH_IMAGE = (
        "object of an image that is not listed",
        "objects of images that are not listed",
        "object",
    )
    NO_IMAGE = ("annotation without its image", "annotations without their images", "image")
    NO_ANNOTATION = ("image without its annotation", "images without their annotations", "image")
    UNREADABLE_FILE = (
        "annotation that cannot be read",
        "annotations that cannot be read",
        "image",
    )
    UNREADABLE_IMAGE = ("image that cannot be read", "images that cannot be read", "image")
    NO_VALID_OBJECT = (
        "image whose objects are all invalid",
        "images whose objects are all invalid",
        "image",
    )
    CLIPPED = ("box clipped to its image", "boxes clipped to their images", "kept")
    WITHOUT_FILE = (
        "image without a file of labels, read as an image without objects",
        "images without a file of labels, read as images without objects",
        "kept",
    )

    UNLISTED = ("image that no JSON lists", "images that no JSON lists", "unused")

    def __init__(
        self, one: str, several: str, counted: Literal["object", "image", "kept", "unused"]
    ) -> None:
        self.one, self.several, self.counted = one, several, counted

    def describe(self, count: int) -> str:
        """Return the kind with a count, as in `2 boxes without an area`."""
        return f"{count:,} {self.one if count == 1 else self.several}"


class AnnotationFaults:
    """The faults of a set of labelled images, and how much of it is valid.

    Attributes:
        num_objects: Number of valid objects.
        num_images: Number of images that are read.
    """

    def __init__(self) -> None:
        self.num_objects = 0
        self.num_images = 0
        self._counts: Counter[FaultKind] = Counter()
        self._first: dict[FaultKind, str] = {}

    def add(self, kind: FaultKind, place: str) -> None:
        """Count a fault.

        Args:
            kind: Its kind.
            place: Where it is, for people: a file, and the object in it.
        """
        self._counts[kind] += 1
        self._first.setdefault(kind, place)

    @property
    def counts(self) -> dict[FaultKind, int]:
        """Number of faults of each kind that there is, in the order of the kinds."""
        return {kind: self._counts[kind] for kind in FaultKind if self._counts[kind]}

    def notes(self) -> tuple[str, ...]:
        """Return a sentence each for what is left out, read differently and not read, if any."""
        sentences = {
            "Left out as invalid": ("object", "image"),
            "Not left out": ("kept",),
            "Not read": ("unused",),
        }
        found = {
            start: [kind for kind in self.counts if kind.counted in counted]
            for start, counted in sentences.items()
        }
        return tuple(f"{start}: {self._list(kinds)}." for start, kinds in found.items() if kinds)

    def _list(self, kinds: Iterable[FaultKind]) -> str:
        return "; ".join(
            f"{kind.describe(self._counts[kind])} "
            f"({'the first is ' * (self._counts[kind] > 1)}{self._first[kind]})"
            for kind in kinds
        )

    def require_few(self, location: str, max_share: float) -> None:
        """Refuse data in which too large a share of the objects, or of the images, is invalid.

        Args:
            location: Where the data are, for the message.
            max_share: Share of invalid objects, and of invalid images, that is allowed.

        Raises:
            InputError: If there are more; the message names kinds, counts and first places.
        """
        self._require(location, max_share, "object", self.num_objects, "labelled objects")
        self._require(location, max_share, "image", self.num_images, "images")

    def _require(
        self, location: str, max_share: float, counted: str, num_valid: int, things: str
    ) -> None:
        kinds = [kind for kind in self.counts if kind.counted == counted]
        num_invalid = sum(self._counts[kind] for kind in kinds)
        total = num_valid + num_invalid
        if num_invalid > max_share * total:
            raise InputError(
                f"{num_invalid:,} of {total:,} {things} of {location} are invalid, a fraction of "
                f"{num_invalid / total:.3g}, and the limit is {max_share:g}: {self._list(kinds)}. "
                "Fix them or remove them from the data, or allow more with --max-invalid."
            )
