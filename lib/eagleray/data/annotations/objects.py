"""Checks the labelled objects of one image and collects those that are valid."""

from __future__ import annotations

import math

from eagleray.data.annotations.faults import AnnotationFaults, FaultKind
from eagleray.data.annotations.masks import Box, box_of
from eagleray.data.label_texts import clean_label
from eagleray.tasks.annotation import MAX_OBJECTS, Annotation, Kind, Mask, TrueObject

__all__ = ["ObjectCollector"]

_MAX_LABEL = 1000  # characters
_MAX_SIDE = 1_000_000
_ROUNDING = 1e-3  # pixels that a box may exceed its image by without being reported


class ObjectCollector:
    """The valid objects of one image.

    Args:
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.
        faults: Counts the objects that are invalid.

    Raises:
        ValueError: If the size is not that of an image.
    """

    def __init__(self, width: int, height: int, faults: AnnotationFaults) -> None:
        if not (1 <= width <= _MAX_SIDE and 1 <= height <= _MAX_SIDE):
            raise ValueError(f"it says that the image has {width} x {height} pixels")
        self.width, self.height = width, height
        self._faults = faults
        self._objects: list[TrueObject] = []
        self._num_rejected = 0

    def reject(self, kind: FaultKind, place: str) -> None:
        """Count the fault of an object of this image, which is left out.

        Args:
            kind: Its kind.
            place: Where it is, for people.
        """
        self._num_rejected += 1
        self._faults.add(kind, place)

    def add(
        self,
        label: str,
        box: Box | None,
        place: str,
        *,
        crowd: bool = False,
        mask: Mask | None = None,
        kind: Kind | None = None,
    ) -> None:
        """Add an object, or count its fault.

        Args:
            label: Its class; white space around it is removed.
            box: Its box in pixels, which is clipped to the image; None for the box of the mask.
            place: Where it is written, for people.
            crowd: Whether it stands for many objects.
            mask: Its pixels, if they are known.
            kind: What its pixels are, if the data say so.
        """
        label = clean_label(label)
        if not 1 <= len(label) <= _MAX_LABEL or not _is_unicode(label):
            self.reject(FaultKind.UNREADABLE_OBJECT, f"{place}, which has no valid label")
            return
        if mask is not None and mask.size != (self.height, self.width):
            self.reject(FaultKind.MASK_SIZE, place)
            return
        if box is None and mask is not None:
            box = box_of(mask)
        clipped = None if box is None else self._clip(box, place)
        if clipped is not None:
            x, y, width, height = clipped
            self._objects.append(
                TrueObject(
                    label=label,
                    x=x,
                    y=y,
                    width=width,
                    height=height,
                    crowd=crowd,
                    mask=mask,
                    kind=kind,
                )
            )

    def _clip(self, box: Box, place: str) -> Box | None:
        """Return the part of a box inside of the image; None if there is none."""
        x, y, width, height = box
        if not all(map(math.isfinite, (*box, x + width, y + height))):
            self.reject(FaultKind.UNREADABLE_OBJECT, f"{place}, whose box is not finite")
            return None
        if width <= 0 or height <= 0:
            self.reject(FaultKind.NO_AREA, place)
            return None
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + width, self.width), min(y + height, self.height)
        if right <= left or bottom <= top:
            self.reject(FaultKind.OUTSIDE, place)
            return None
        excess = max(left - x, top - y, x + width - right, y + height - bottom)
        if excess <= 0:
            return box
        if excess > _ROUNDING:
            self._faults.add(FaultKind.CLIPPED, place)
        return left, top, right - left, bottom - top

    def annotation(self, place: str) -> Annotation | None:
        """Return the image's annotation; None, counted, for an image that is left out.

        It is if it has too many objects, or if all of them are invalid: it is not known to be
        empty, and must not be taught as background.

        Args:
            place: Where the image or its labels are, for people.
        """
        if len(self._objects) > MAX_OBJECTS:
            self._faults.add(
                FaultKind.UNREADABLE_FILE, f"{place}, which has more than {MAX_OBJECTS:,} objects"
            )
            return None
        objects = tuple(self._objects)
        annotation = Annotation(width=self.width, height=self.height, objects=objects)
        if self._num_rejected and not annotation.known:
            self._faults.add(FaultKind.NO_VALID_OBJECT, place)
            return None
        self._faults.num_objects += len(annotation.known)
        self._faults.num_images += 1
        return annotation


def _is_unicode(text: str) -> bool:
    """Whether a text is valid Unicode; YAML can spell lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
