"""Joins tensors of images that have different numbers of objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["join_padded"]


def join_padded(parts: Sequence[Tensor]) -> Tensor:
    """Return tensors (N, K, …) joined along the first axis, filled up with zeros to the largest K.

    Rows of zeros mark no objects; other tensors have one length.
    """
    lengths = {part.shape[1] for part in parts if part.ndim > 1}
    if len(lengths) < 2:
        return torch.cat(list(parts))
    joined = parts[0].new_zeros(sum(map(len, parts)), max(lengths), *parts[0].shape[2:])
    place = 0
    for part in parts:
        joined[place : place + len(part), : part.shape[1]] = part
        place += len(part)
    return joined
