"""NanoDet: for each stride a grid of probabilities, and of distances as distributions.

Source: Li et al. 2020, "Generalized Focal Loss". Each of the distances to the left, upper, right
and lower edge is a softmax over the bins 0, 1, … of a stride; its mean times the stride is the
distance from the centre of the cell.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from eagleray.importing.decoders.base import TINY, Candidates, DetectorOutputs, register_decoder
from eagleray.importing.operators import Operators

__all__ = ["decode"]

_STRIDES = (4, 8, 16, 32, 64, 128)
_WANTED = (
    "nanodet reads for each stride an output (1, P, C) of scores and one (1, P, 4 * bins) of "
    "distances, where P is the number of cells of the input"
)


@register_decoder("nanodet")
def decode(source: DetectorOutputs, operators: Operators) -> Candidates:
    """Read the grids, the finest first.

    Raises:
        ValueError: If the outputs are no such grids.
    """
    grids = _grids(source)
    boxes, logits = [], []
    for stride, (scores, distances) in grids.items():
        boxes.append(_boxes(source, operators, stride, distances))
        name = source.read(operators, scores)
        is_logits = source.scores == "logits"
        logits.append(name if is_logits else operators.logits(name, tiny=TINY))
    return Candidates(
        operators.add("Concat", *boxes, axis=1),
        operators.add("Concat", *logits, axis=1),
        sum(source.shapes[scores][1] for scores, _ in grids.values()),
    )


def _grids(source: DetectorOutputs) -> dict[int, tuple[str, str]]:
    """Return the names of scores and distances by stride."""
    strides = {_num_cells(source.size, stride): stride for stride in reversed(_STRIDES)}
    found: dict[int, list[str]] = {}
    for name, shape in source.shapes.items():
        if len(shape) != 3 or shape[1] not in strides:
            raise source.misfit(_WANTED)
        found.setdefault(strides[shape[1]], []).append(name)
    grids = {}
    for stride in sorted(found):
        scores = [one for one in found[stride] if source.shapes[one][2] == source.num_labels]
        distances = [
            one for one in found[stride] if one not in scores and _num_bins(source, one) > 1
        ]
        if len(scores) != 1 or len(distances) != 1 or len(found[stride]) != 2:
            raise source.misfit(_WANTED)
        grids[stride] = scores[0], distances[0]
    return grids


def _num_cells(size: tuple[int, int], stride: int) -> int:
    return math.prod(math.ceil(side / stride) for side in size)


def _num_bins(source: DetectorOutputs, name: str) -> float:
    """Return the number of bins of a distance; 0 if the output has no distances."""
    bins, rest = divmod(source.shapes[name][2], 4)
    return 0 if rest else bins


def _boxes(source: DetectorOutputs, operators: Operators, stride: int, distances: str) -> str:
    """Return the boxes of a grid (N, P, 4)."""
    _, count, length = source.shapes[distances]
    bins = length // 4
    split = operators.reshape(source.read(operators, distances), count, 4, bins)
    shares = operators.add("Softmax", split, axis=3)
    mean = operators.sum(operators.scale(shares, np.arange(bins)), axis=3)
    signed = operators.scale(mean, np.asarray((-stride, -stride, stride, stride)))
    return operators.add("Add", signed, operators.constant(_centres(source.size, stride)))


def _centres(size: tuple[int, int], stride: int) -> npt.NDArray[np.float32]:
    """Return x, y, x, y of the centre of each cell, float32 (P, 4), row by row."""
    rows, columns = (np.arange(math.ceil(side / stride)) + 0.5 for side in size)
    y, x = np.meshgrid(rows * stride, columns * stride, indexing="ij")
    return np.stack([x, y, x, y], axis=2).reshape(-1, 4).astype(np.float32)
