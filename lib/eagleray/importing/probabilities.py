"""Checks that the scores of an imported network are the probabilities that they are taken for.

The graph of a package takes logarithms of them, from which values outside of [0, 1] can be told:
what `Operators.logits` cuts off is the smallest value of each logarithm, and not the largest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError

__all__ = ["require_exclusive_probabilities", "require_probabilities"]

_MAX_EXCESS = 1e-3  # of a probability above 1 or below 0, and of a sum

Floats = npt.NDArray[np.float32]


def require_probabilities(file: str, logits: Floats, *, tiny: float) -> None:
    """Refuse scores beyond [0, 1].

    Args:
        file: The imported file, for the message.
        logits: What `Operators.logits` made of the scores, of any shape.
        tiny: Where the logarithms were cut off.

    Raises:
        InputError: If there are such scores.
    """
    values = logits.astype(np.float64)
    largest, smallest = float(values.max()), float(values.min())
    bound = -np.log(tiny)
    high = np.exp(largest - bound) if largest > bound else 1.0
    low = 1 - np.exp(-bound - smallest) if smallest < -bound else 0.0
    if low < -_MAX_EXCESS or high > 1 + _MAX_EXCESS:
        found = " and ".join(
            text
            for text, is_beyond in (
                (f"down to {low:.3g}", low < -_MAX_EXCESS),
                (f"up to {high:.3g}", high > 1 + _MAX_EXCESS),
            )
            if is_beyond
        )
        raise InputError(
            f"{file} gives scores {found}, and probabilities are from 0 to 1; name --scores "
            "logits, or check --mean and --std."
        )


def require_exclusive_probabilities(file: str, logarithms: Floats) -> None:
    """Refuse scores of labels that exclude each other if they do not add up to 1.

    Args:
        file: The imported file, for the message.
        logarithms: Logarithms of the scores (N, C).

    Raises:
        InputError: If those of an image do not.
    """
    sums = np.exp(logarithms.astype(np.float64)).sum(axis=1)
    worst = float(sums[np.abs(sums - 1).argmax()])
    if abs(worst - 1) > _MAX_EXCESS:
        raise InputError(
            f"{file} gives scores that add up to {worst:.3g} for an image, and probabilities of "
            "labels that exclude each other add up to 1; name --scores logits, or --task "
            "multilabel if several labels can hold."
        )
