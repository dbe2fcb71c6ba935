"""Places the captions of boxes in a picture where they cover no other, as far as there is room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Edges", "place_caption"]

_INDENT = 3.0  # pixels from the side of a box to its caption
_GAP = 1.0  # pixels between a box and a caption above or below it


class Edges(NamedTuple):
    """The edges of a rectangle in pixels of a picture."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: Edges) -> bool:
        """Whether both have a place in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def place_caption(
    width: float, height: float, box: Edges, taken: Sequence[Edges], picture: tuple[int, int]
) -> Edges:
    """Return the first place in, above or below a box where a caption covers no other one.

    Where there is none, it is the upper left corner of the box.

    Args:
        width: Width of the caption in pixels.
        height: Its height.
        box: Edges of the box.
        taken: The captions that have a place.
        picture: Width and height of the picture.
    """
    columns = (box.left + _INDENT, box.right - width - _INDENT)
    rows = [box.top + _GAP, box.top - height - _GAP, box.bottom + _GAP]
    inside = box.top + _GAP + height
    while inside + height <= box.bottom:
        rows.append(inside)
        inside += height
    places = [Edges(x, y, x + width, y + height) for y in rows for x in columns]
    whole = Edges(0, 0, *picture)
    return next((one for one in places if _is_free(one, taken, whole)), places[0])


def _is_free(place: Edges, taken: Sequence[Edges], whole: Edges) -> bool:
    is_within = (
        place.left >= whole.left
        and place.top >= whole.top
        and place.right <= whole.right
        and place.bottom <= whole.bottom
    )
    return is_within and not any(place.covers(other) for other in taken)
