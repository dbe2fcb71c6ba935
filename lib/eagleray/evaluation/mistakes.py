"""The images to look at: the worst mistakes, and the labels that are probably wrong themselves.

Suspected label errors are found by confident learning (Northcutt, Jiang and Chuang, "Confident
Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021). A label is confident of an image
when its probability is at least its mean over the images that are given this label. Where a label
other than the given one is confident, and likeliest of those that are, the image lies off the
diagonal of the confident joint. It is listed if that label is also likelier than the given one, the
largest margins first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.evaluation.evaluate import Evaluation
from eagleray.evaluation.outputs import answered_labels, label_columns, true_labels, true_values
from eagleray.tasks.tasks import Multilabel, Regression

__all__ = ["Mistake", "SuspectedLabel", "suspected_labels", "worst_mistakes"]

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Mistake:
    """An answer that is not the given label.

    Attributes:
        row: Of the image.
        uri: Of the image.
        given: Its label, or number; for multilabel the one label at stake, as `cat` or `not cat`.
        answered: What the model says instead.
        confidence: Probability of the answer; None for regression.
        error: Answer minus truth, for regression; else None.
    """

    row: int
    uri: str
    given: str
    answered: str
    confidence: float | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class SuspectedLabel:
    """A label that is probably wrong.

    Attributes:
        row: Of the image.
        uri: Of the image.
        given: Its label; for multilabel the one label at stake, as `cat` or `not cat`.
        suggested: What it probably is.
        confidence: Probability of the suggestion.
        margin: By how much that exceeds the probability of the given label.
    """

    row: int
    uri: str
    given: str
    suggested: str
    confidence: float
    margin: float


def worst_mistakes(evaluation: Evaluation, count: int = 24) -> list[Mistake]:
    """Return the wrong answers of the highest confidence, or the numbers farthest off."""
    if isinstance(evaluation.task, Regression):
        return _largest_errors(evaluation, evaluation.task, count)
    at, given, answered, confidence = _wrong(evaluation)
    best = np.argsort(-confidence, kind="stable")[:count]
    return [
        Mistake(
            *_image(evaluation, at[index]),
            _name(evaluation, given[index]),
            _name(evaluation, answered[index]),
            confidence=float(confidence[index]),
        )
        for index in best
    ]


def _largest_errors(evaluation: Evaluation, task: Regression, count: int) -> list[Mistake]:
    truth = true_values(task, evaluation.targets)
    values = evaluation.outputs.cpu().numpy()[:, 0].astype(np.float64)
    errors = values - truth
    return [
        Mistake(
            *_image(evaluation, at),
            f"{truth[at]:.6g}",
            f"{values[at]:.6g}",
            error=float(errors[at]),
        )
        for at in np.argsort(-np.abs(errors), kind="stable")[:count]
        if errors[at] != 0
    ]


def _wrong(evaluation: Evaluation) -> tuple[Integers, Integers, Integers, Floats]:
    """Return of each wrong answer its position, both labels as `_name` takes them, and its score.

    A label is its index; for multilabel 2 * index, and 2 * index + 1 where it holds.
    """
    task, scores = evaluation.task, evaluation.outputs.cpu().numpy()
    answers, truth = (
        answered_labels(task, evaluation.outputs),
        true_labels(task, evaluation.targets),
    )
    if isinstance(task, Multilabel):
        at, label = np.nonzero(answers != truth)
        answered = answers[at, label]
        positive = scores[at, label]
        confidence = np.where(answered == 1, positive, 1 - positive)
        return at, 2 * label + truth[at, label], 2 * label + answered, confidence
    at = np.flatnonzero(answers != truth)
    return at, truth[at], answers[at], scores[at, answers[at]]


def suspected_labels(evaluation: Evaluation, count: int | None = None) -> list[SuspectedLabel]:
    """Return the labels that confident answers contradict, the clearest first.

    The model must not have learned these images, or it has learned their labels' errors too. A
    regression has no labels to suspect.

    Args:
        evaluation: Of a model that is good enough to be asked.
        count: The most to return; None for all.
    """
    task = evaluation.task
    if isinstance(task, Regression):
        return []
    if isinstance(task, Multilabel):
        found = _contradicted_of_each(evaluation)
    else:
        scores = evaluation.outputs.cpu().numpy()
        truth = true_labels(task, evaluation.targets)
        at, suggested = _contradicted(scores, truth)
        found = (at, truth[at], suggested, scores[at, suggested], scores[at, truth[at]])
    at, given, suggested, confidence, given_score = found
    margin = confidence - given_score
    best = np.lexsort((at, -margin))[:count]
    return [
        SuspectedLabel(
            *_image(evaluation, at[index]),
            _name(evaluation, given[index]),
            _name(evaluation, suggested[index]),
            float(confidence[index]),
            float(margin[index]),
        )
        for index in best
    ]


def _contradicted(scores: Floats, truth: Integers) -> tuple[Integers, Integers]:
    """Return the positions off the diagonal of the confident joint, and their labels there.

    Args:
        scores: Probabilities (N, num_labels).
        truth: Index of the given label (N,).
    """
    num_labels = scores.shape[1]
    counts = np.bincount(truth, minlength=num_labels)
    own = np.bincount(truth, scores[np.arange(len(truth)), truth], minlength=num_labels)
    # A label that no image is given has no confidence of its own to compare with.
    limits = np.divide(own, counts, out=np.full(num_labels, np.inf), where=counts > 0)
    confident = np.where(scores >= limits, scores, -1.0)
    likeliest = confident.argmax(axis=1)
    better = confident.max(axis=1) > scores[np.arange(len(truth)), truth]
    at = np.flatnonzero(better & (likeliest != truth))
    return at, likeliest[at].astype(np.int64)


def _contradicted_of_each(
    evaluation: Evaluation,
) -> tuple[Integers, Integers, Integers, Floats, Floats]:
    """Treat every label of a multilabel task as a question of its own: does it hold or not."""
    parts = []
    columns = label_columns(evaluation.task, evaluation.outputs, evaluation.targets)
    for label, column in enumerate(columns):
        both = np.stack([1 - column.scores, column.scores], axis=1)
        truth = column.holds.astype(np.int64)
        at, suggested = _contradicted(both, truth)
        scores = both[at, suggested], both[at, truth[at]]
        parts.append((at, 2 * label + truth[at], 2 * label + suggested, *scores))
    first, *rest = zip(*parts, strict=True)
    given, suggested, confidence, given_score = map(np.concatenate, rest)
    return np.concatenate(first), given, suggested, confidence, given_score


def _image(evaluation: Evaluation, position: int) -> tuple[int, str]:
    row = int(evaluation.rows[position])
    return row, evaluation.images.uris[row]


def _name(evaluation: Evaluation, label: int) -> str:
    task = evaluation.task
    if not isinstance(task, Multilabel):
        return task.labels[label]
    name = task.labels[label // 2]
    return name if label % 2 else f"not {name}"
