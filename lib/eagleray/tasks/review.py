"""Images to review: the worst mistakes, and the labels that are probably wrong themselves.

Suspected label errors are found by confident learning (Northcutt, Jiang and Chuang, "Confident
Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021). A label is confident of an image
when its probability is at least its mean over the images with this label. Where a label other than
the given one is confident, and the most likely one of those, the image lies off the diagonal of the
confident joint. It is suspected if that label is also more likely than the given one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Mistake", "SuspectedLabel", "contradicted_labels"]


@dataclass(frozen=True, slots=True)
class Mistake:
    """A prediction that is not the given label.

    Attributes:
        position: Position of the image among those measured.
        given: Its label or number; for multilabel the one label at stake, as `cat` or `not cat`.
        predicted: What the model predicts instead.
        confidence: Probability of the prediction; None for regression.
        error: Predicted minus true value for regression; else None.
    """

    position: int
    given: str
    predicted: str
    confidence: float | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class SuspectedLabel:
    """A label that is probably wrong.

    Attributes:
        position: Position of the image among those measured.
        given: Its label; for multilabel the one label at stake, as `cat` or `not cat`.
        suggested: The label that is probably right.
        confidence: Probability of the suggestion.
        margin: The confidence minus the probability of the given label.
    """

    position: int
    given: str
    suggested: str
    confidence: float
    margin: float


def contradicted_labels(
    scores: npt.NDArray[np.floating[Any]], truth: npt.NDArray[np.int64], names: tuple[str, ...]
) -> list[SuspectedLabel]:
    """Return the labels off the diagonal of the confident joint, in the order of the images.

    Args:
        scores: Probabilities (N, num_labels).
        truth: Index of the given label (N,).
        names: Names of the labels.
    """
    num_labels = scores.shape[1]
    counts = np.bincount(truth, minlength=num_labels)
    own = scores[np.arange(len(truth)), truth]
    sums = np.bincount(truth, own, minlength=num_labels)
    # A label that no image is given has no confidence of its own to compare with.
    limits = np.divide(sums, counts, out=np.full(num_labels, np.inf), where=counts > 0)
    confident = np.where(scores >= limits, scores, -1.0)
    likeliest = confident.argmax(axis=1)
    suspected = (confident.max(axis=1) > own) & (likeliest != truth)
    return [
        SuspectedLabel(
            position=int(at),
            given=names[truth[at]],
            suggested=names[likeliest[at]],
            confidence=float(scores[at, likeliest[at]]),
            margin=float(scores[at, likeliest[at]] - own[at]),
        )
        for at in np.flatnonzero(suspected)
    ]
