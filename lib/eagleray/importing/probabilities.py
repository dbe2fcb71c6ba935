"""Checks that the scores of an imported network are the probabilities that they are taken for.

The graph of a package takes logarithms of them, from which values outside of [0, 1] can be told:
what `Operators.logits` cuts off is the smallest value of each logarithm, and not the largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError

__all__ = [
    "Promise",
    "require_exclusive_probabilities",
    "require_logits",
    "require_probabilities",
    "require_shares",
]

_MAX_EXCESS = 1e-3  # of a probability above 1 or below 0, and of a sum

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Promise:
    """What the scores of a network are taken for.

    Attributes:
        kind: `probabilities` each, of which the graph takes logarithms; `exclusive` ones, which add
            up to 1 for an image; `shares`, probabilities that the graph passes on as they are;
            `logits` of a detector.
        tiny: Where the logarithms of probabilities are cut off.
        num_exclusive: Number of labels of the softmax that is applied to logits; None for a
            sigmoid.
    """

    kind: Literal["probabilities", "exclusive", "shares", "logits"]
    tiny: float = 0.0
    num_exclusive: int | None = None

    def require(self, file: str, scores: Floats) -> None:
        """Refuse scores that are not what they are taken for, as far as their values show it.

        Args:
            file: The imported file, for the message.
            scores: What the package's graph made of the scores.

        Raises:
            InputError: If they are not.
        """
        if self.kind == "exclusive":
            require_exclusive_probabilities(file, scores)
        elif self.kind == "probabilities":
            require_probabilities(file, scores, tiny=self.tiny)
        elif self.kind == "shares":
            require_shares(file, scores)
        else:
            require_logits(file, scores, num_exclusive=self.num_exclusive)


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
    _require_range(file, float(low), float(high))


def require_shares(file: str, values: Floats) -> None:
    """Refuse scores beyond [0, 1], which a graph passes on as they are.

    Raises:
        InputError: If there are such scores.
    """
    _require_range(file, float(values.min()), float(values.max()))


def _require_range(file: str, low: float, high: float) -> None:
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


def require_logits(file: str, logits: Floats, *, num_exclusive: int | None) -> None:
    """Refuse scores of a detector that are probabilities, where logits are promised.

    Logits of candidates of noise are far below 0. Probabilities that a sigmoid is applied to once
    more are all from 0.5 to 0.73; those of a softmax over n labels are all from 1 / (e + n - 1) to
    e / (e + n - 1).

    Args:
        file: The imported file, for the message.
        logits: The logits of the package's graph (N, A, C).
        num_exclusive: Number n of labels of a softmax; None for a sigmoid.

    Raises:
        InputError: If all of them are in that range.
    """
    values = 1 / (1 + np.exp(-logits.astype(np.float64).clip(-80, 80)))
    others = 1 if num_exclusive is None else num_exclusive - 1
    low = 0.5 if num_exclusive is None else 1 / (np.e + others)
    high = np.e / (np.e + others)
    if values.min() >= low - _MAX_EXCESS and values.max() <= high + _MAX_EXCESS:
        raise InputError(
            f"{file} gives scores that are all from 0 to 1, as probabilities are and logits are "
            "not; name --scores probabilities."
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
