"""Reads the outputs of networks that say something of every pixel: maps of scores, and masks.

A map of scores (1, C, h, w) is passed on as it is: its scores are enlarged to the original image,
and each pixel has the label of the highest one. Mask queries are an output (1, Q, C + 1) of scores,
whose last label is that of no object, and one (1, Q, h, w) of masks, both logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from eagleray.importing.graft import Behind
from eagleray.importing.operators import Operators
from eagleray.models.graph import LOGITS_OUTPUT
from eagleray.tasks.segmentation.mask_queries import QUERY_OUTPUTS, MaskQueries

__all__ = ["MASK_DECODERS", "behind_map", "behind_queries", "find_map", "find_queries"]

MASK_DECODERS: Mapping[str, tuple[int, int] | None] = {
    "mask2former": (384, 384),
    "maskformer": None,
}
"""Height and width to which transformers enlarges masks before it reads them, by decoder."""

_FLOAT = 1  # float32 among ONNX's types of tensors

Shapes = Mapping[str, tuple[int, ...]]
Layout = Literal["nchw", "nhwc"]


def find_map(shapes: Shapes, num_labels: int) -> tuple[str, Layout]:
    """Return the name of the output with a score of each label, and the order of its dimensions.

    Two labels may have one score, that of the second.

    Raises:
        ValueError: If no output, or more than one, has this form.
    """
    lengths = (num_labels, 1) if num_labels == 2 else (num_labels,)
    layouts: tuple[tuple[Layout, int], ...] = (("nchw", 1), ("nhwc", 3))
    found = [
        (name, layout)
        for name, shape in shapes.items()
        for layout, axis in layouts
        if len(shape) == 4 and shape[axis] in lengths
    ]
    if len(found) != 1:
        raise ValueError(
            f"its outputs are {_listed(shapes)}, and a semantic model has one (1, C, h, w) of "
            f"scores, with C = {num_labels:,} labels; {_advice_on_map(shapes)}"
        )
    return found[0]


def _advice_on_map(shapes: Shapes) -> str:
    if all(len(shape) != 4 for shape in shapes.values()):
        return "none of them is a map of pixels, so name another --task"
    return "name as many --labels as it has, or a --decoder for mask queries"


def _advice_on_queries(shapes: Shapes) -> str:
    rows = [shape for shape in shapes.values() if len(shape) == 3]
    masks = {shape[1] for shape in shapes.values() if len(shape) == 4}
    counts = sorted({shape[2] - 1 for shape in rows if shape[1] in masks and shape[2] > 1})
    if counts:
        return f"name {' or '.join(f'{count:,}' for count in counts)} --labels"
    return "none of them are masks of queries, so name another --task or --decoder"


def behind_map(
    output: str,
    layout: Layout,
    shape: tuple[int, ...],
    scores: Literal["logits", "probabilities"],
    size: tuple[int, int] | None,
) -> Behind:
    """Return what makes a map of scores (N, C, h, w) of a network's output.

    Args:
        output: Name of the output.
        layout: The order of its dimensions.
        shape: Its shape for one image.
        scores: What it has; it matters where one score stands for two labels.
        size: Height and width to which it is enlarged; None for its own.
    """

    def append(operators: Operators, prefix: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        result = operators.add("Cast", prefix + output, to=_FLOAT)
        channels, height, width = shape[1:]
        if layout == "nhwc":
            result = operators.add("Transpose", result, perm=[0, 3, 1, 2])
            height, width, channels = shape[1:]
        if channels == 1:
            channels, result = 2, _both(operators, result, scores)
        if size not in (None, (height, width)):
            assert size is not None
            result = operators.enlarge(result, (size[0] / height, size[1] / width))
            height, width = size
        return {LOGITS_OUTPUT: (result, (channels, height, width))}

    return append


def _both(operators: Operators, score: str, scores: Literal["logits", "probabilities"]) -> str:
    """Return the scores of both labels from that of the second."""
    whole = operators.constant(1 if scores == "probabilities" else 0)
    return operators.add("Concat", operators.add("Sub", whole, score), score, axis=1)


def find_queries(shapes: Shapes, num_labels: int, decoder: str) -> tuple[MaskQueries, list[str]]:
    """Return the form of mask queries, and the names of the outputs with labels and masks.

    Args:
        shapes: Shape of each output for one image, by its name.
        num_labels: Number of labels C.
        decoder: One of `MASK_DECODERS`.

    Raises:
        ValueError: If the outputs have no such form, or another number of labels.
    """
    pairs = [
        [labels, masks]
        for labels, shape in shapes.items()
        for masks, other in shapes.items()
        if len(shape) == 3
        and len(other) == 4
        and shape[1] == other[1]
        and shape[2] == num_labels + 1
    ]
    if len(pairs) != 1:
        raise ValueError(
            f"its outputs are {_listed(shapes)}, and {decoder} reads one (1, Q, C + 1) of scores, "
            f"no object last, and one (1, Q, h, w) of masks, with C = {num_labels:,} labels; "
            f"{_advice_on_queries(shapes)}"
        )
    (pair,) = pairs
    _, count, height, width = shapes[pair[1]]
    form = {"count": count, "size": (height, width), "enlarged": MASK_DECODERS[decoder]}
    return MaskQueries.model_validate(form), pair


def behind_queries(queries: MaskQueries, names: list[str], num_labels: int) -> Behind:
    """Return what gives the outputs of mask queries their names."""

    def append(operators: Operators, prefix: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        shapes = queries.shapes(num_labels)
        return {
            name: (operators.add("Cast", prefix + source, to=_FLOAT), shapes[name])
            for name, source in zip(QUERY_OUTPUTS, names, strict=True)
        }

    return append


def _listed(shapes: Shapes) -> str:
    return ", ".join(f"{name[:100]!r} {shape}" for name, shape in list(shapes.items())[:8])
