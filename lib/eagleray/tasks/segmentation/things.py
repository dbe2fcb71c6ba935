"""Decides which labels are things, whose objects are told apart, and which are stuff."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from eagleray.core.errors import InputError
from eagleray.tasks.annotation import Annotation, Kind

__all__ = ["find_things"]


def find_things(annotations: Iterable[Annotation]) -> set[str]:
    """Return the labels of things.

    Where the data say of a label whether it is a thing, as COCO's panoptic categories do, it is
    what they say. Any other label is a thing if some image has several objects of it, crowds apart.

    Raises:
        InputError: If the data say both of one label.
    """
    several: set[str] = set()
    said: dict[str, Kind] = {}
    for annotation in annotations:
        for one in annotation.known:
            if one.kind is not None and said.setdefault(one.label, one.kind) != one.kind:
                raise InputError(
                    f"The label {one.label!r} is a thing in one image and stuff in another; give "
                    "it one kind, or two labels."
                )
        counts = Counter(one.label for one in annotation.known if not one.crowd)
        several |= {label for label, count in counts.items() if count > 1}
    things = {label for label, kind in said.items() if kind == "thing"}
    return things | (several - set(said))
