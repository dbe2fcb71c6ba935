"""Images to review: the worst mistakes, and the labels that are probably wrong themselves.

Suspected label errors are found by confident learning (Northcutt, Jiang and Chuang, "Confident
Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021). A label is confident of an image
when its probability is at least its mean over the images with this label. Each image with a
confident label is counted in the confident joint, by its given label and its likeliest confident
one. Off the diagonal, the label is suspected if the confident one is also more likely.

The method takes a contradiction for an error of the label, which holds as far as the model is
right. How often it is right can be seen in the joint itself: its diagonal is the share of confident
predictions that agree with the labels. Few data sets have more than 10 % wrong labels (Northcutt,
Athalye and Mueller, "Pervasive Label Errors in Test Sets", NeurIPS 2021), so a model that agrees
with less than `MIN_AGREEMENT` is mostly wrong itself where it contradicts, and suspects nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.tasks.page import Box

__all__ = ["MIN_AGREEMENT", "LabelReview", "Mistake", "SuspectedLabel", "contradicted_labels"]

MIN_AGREEMENT = 0.8
"""Share of the confident predictions that must agree with the labels before one is suspected."""
_MIN_SUGGESTED = 0.5  # the same for those that predict one label


@dataclass(frozen=True, slots=True)
class Mistake:
    """A prediction that is not the given label.

    Attributes:
        position: Position of the image among those measured.
        given: Its label or number; for multilabel the one label at stake, as `cat` or `not cat`.
        predicted: What the model predicts instead.
        confidence: Probability of the prediction; None for regression.
        error: Predicted minus true value for regression; else None.
        boxes: True and predicted objects, for detection.
    """

    position: int
    given: str
    predicted: str
    confidence: float | None = None
    error: float | None = None
    boxes: tuple[Box, ...] = ()


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


@dataclass(frozen=True, slots=True)
class LabelReview:
    """The labels that are probably wrong.

    Attributes:
        suspects: The labels, the clearest first.
        withheld: Sentence that says why contradicted labels are not listed; empty if they are.
    """

    suspects: tuple[SuspectedLabel, ...] = ()
    withheld: str = ""


def contradicted_labels(
    scores: npt.NDArray[np.floating[Any]], truth: npt.NDArray[np.int64], names: tuple[str, ...]
) -> LabelReview:
    """Return the labels off the diagonal of the confident joint, the clearest first.

    A label that is suggested must be right in most of the confident predictions of it.

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
    counted = confident.max(axis=1) >= 0
    suspected = (confident.max(axis=1) > own) & (likeliest != truth)
    if not suspected.any():
        return LabelReview()
    agreement = float((likeliest == truth)[counted].mean())
    if agreement < MIN_AGREEMENT:
        return LabelReview(withheld=_why_withheld(int(suspected.sum()), agreement))
    predicted = np.bincount(likeliest[counted], minlength=num_labels)
    agreed = np.bincount(truth[counted & (likeliest == truth)], minlength=num_labels)
    suspected &= (agreed >= _MIN_SUGGESTED * predicted)[likeliest]
    found = [
        SuspectedLabel(
            position=int(at),
            given=names[truth[at]],
            suggested=names[likeliest[at]],
            confidence=float(scores[at, likeliest[at]]),
            margin=float(scores[at, likeliest[at]] - own[at]),
        )
        for at in np.flatnonzero(suspected)
    ]
    return LabelReview(tuple(sorted(found, key=lambda one: -one.margin)))


def _why_withheld(count: int, agreement: float) -> str:
    labels = "label is" if count == 1 else "labels are"
    return (
        f"{count:,} {labels} contradicted by a confident prediction, and not listed: the model's "
        f"confident predictions agree with the labels at a rate of {agreement:.2f}, and below "
        f"{MIN_AGREEMENT} the model is more likely to be wrong than a label."
    )
