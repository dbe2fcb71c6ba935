"""DETR: for each query a relative box and scores, with or without one of the background.

Source: Carion et al. 2020, "End-to-End Object Detection with Transformers": a softmax over the
labels and the background, which comes last. Later ones, from Deformable DETR on, have a sigmoid of
each label.
"""

from __future__ import annotations

import numpy as np

from eagleray.importing.decoders.base import TINY, Candidates, DetectorOutputs, register_decoder
from eagleray.importing.decoders.boxes import corners_of
from eagleray.importing.operators import Operators

__all__ = ["decode", "num_exclusive_labels"]

_WANTED = (
    "detr reads an output (1, Q, 4) of boxes and one (1, Q, C) or, with the background last, "
    "(1, Q, C + 1) of scores"
)


@register_decoder("detr")
def decode(source: DetectorOutputs, operators: Operators) -> Candidates:
    """Read centre x, y, width and height as shares of the input, and the scores.

    Raises:
        ValueError: If the outputs have another form.
    """
    boxes, scores = _outputs(source)
    _, count, length = source.shapes[scores]
    height, width = source.size
    corners = corners_of(operators, source.read(operators, boxes), (width, height, width, height))
    has_background = length == source.num_labels + 1
    logits = _logits(
        source, operators, source.read(operators, scores), has_background=has_background
    )
    return Candidates(corners, logits, count)


def num_exclusive_labels(source: DetectorOutputs) -> int | None:
    """Return the number of scores of the softmax that is applied to a query's; None for a sigmoid.

    Raises:
        ValueError: If the outputs have another form.
    """
    length = source.shapes[_outputs(source)[1]][2]
    activation = _activation(source, has_background=length > source.num_labels)
    return length if activation == "softmax" else None


def _activation(source: DetectorOutputs, *, has_background: bool) -> str:
    if source.activation == "auto":
        return "softmax" if has_background else "sigmoid"
    return source.activation


def _outputs(source: DetectorOutputs) -> tuple[str, str]:
    """Return the names of the boxes and of the scores; other outputs are left aside."""
    lengths = (source.num_labels, source.num_labels + 1)
    pairs = [
        (boxes, scores)
        for boxes, shape in source.shapes.items()
        for scores, other in source.shapes.items()
        if boxes != scores
        and len(shape) == len(other) == 3
        and shape[2] == 4
        and other == (*shape[:2], other[2])
        and other[2] in lengths
    ]
    if len(pairs) > 1:  # with four labels only names tell them apart
        pairs = [one for one in pairs if "box" in one[0].lower() and "box" not in one[1].lower()]
    if len(pairs) != 1:
        raise source.misfit(_WANTED)
    return pairs[0]


def _logits(
    source: DetectorOutputs, operators: Operators, scores: str, *, has_background: bool
) -> str:
    """Return the logits of the labels, without the background."""
    activation = _activation(source, has_background=has_background)
    is_probability = source.scores == "probabilities"
    if activation == "softmax" and not is_probability:
        scores = operators.add("Softmax", scores, axis=2)
        is_probability = True
    if has_background:
        scores = operators.take(scores, np.arange(source.num_labels), axis=2)
    return operators.logits(scores, tiny=TINY) if is_probability else scores
