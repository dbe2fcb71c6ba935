"""YOLO: one output of boxes and scores, with or without the score that there is an object.

Source of the forms: YOLOv5 and YOLOv7 give (1, A, 5 + C), YOLOv8 and later (1, 4 + C, A).
"""

from __future__ import annotations

import numpy as np

from eagleray.importing.decoders.base import TINY, Candidates, DetectorOutputs, register_decoder
from eagleray.importing.decoders.boxes import corners_of
from eagleray.importing.operators import Operators

__all__ = ["decode"]

_WANTED = (
    "yolo reads one output (1, 4 + C, A), (1, A, 4 + C) or, with a score that there is an object, "
    "(1, A, 5 + C) or (1, 5 + C, A)"
)


@register_decoder("yolo")
def decode(source: DetectorOutputs, operators: Operators) -> Candidates:
    """Read centre x, y, width and height in pixels of the input, and the scores.

    Raises:
        ValueError: If the output has another form.
    """
    name, axis, has_objectness = _form(source)
    shape = source.shapes[name]
    rows = source.read(operators, name)
    if axis == 1:
        rows = operators.add("Transpose", rows, perm=[0, 2, 1])
    first = 5 if has_objectness else 4
    scores = operators.take(rows, np.arange(first, first + source.num_labels), axis=2)
    if has_objectness:
        scores = _joint(source, operators, operators.take(rows, [4], axis=2), scores)
    elif source.scores != "logits":
        scores = operators.logits(scores, tiny=TINY)
    boxes = corners_of(operators, operators.take(rows, range(4), axis=2))
    return Candidates(boxes, scores, shape[3 - axis])


def _form(source: DetectorOutputs) -> tuple[str, int, bool]:
    """Return the output's name, the axis of its values, and whether it has an objectness."""
    forms = [
        (name, axis, has_objectness)
        for name, shape in source.shapes.items()
        for axis in (1, 2)
        for has_objectness in (False, True)
        if len(shape) == 3 and shape[axis] == 4 + has_objectness + source.num_labels
    ]
    if len(forms) != 1:
        raise source.misfit(_WANTED)
    return forms[0]


def _joint(source: DetectorOutputs, operators: Operators, objectness: str, scores: str) -> str:
    """Return the logits of the product of both probabilities."""
    if source.scores == "logits":
        objectness, scores = (operators.add("Sigmoid", one) for one in (objectness, scores))
    return operators.logits(operators.add("Mul", objectness, scores), tiny=TINY)
