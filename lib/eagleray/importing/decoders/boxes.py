"""Operators on boxes that several decoders share."""

from __future__ import annotations

from eagleray.importing.operators import Operators

__all__ = ["corners_of"]

_HALF_SIDES = (-0.5, -0.5, 0.5, 0.5)


def corners_of(operators: Operators, boxes: str, scale: tuple[float, ...] | None = None) -> str:
    """Return boxes (N, A, 4) as x1, y1, x2, y2 from the centre x, y, the width and the height.

    Args:
        operators: Appends to the graph.
        boxes: Name of the boxes (N, A, 4).
        scale: Factors of x, y, width and height; None for 1.
    """
    if scale is not None:
        boxes = operators.scale(boxes, scale)
    centres = operators.take(boxes, [0, 1, 0, 1], axis=2)
    sides = operators.scale(operators.take(boxes, [2, 3, 2, 3], axis=2), _HALF_SIDES)
    return operators.add("Add", centres, sides)
