"""Predicts the worst mistakes of a model of pixels once more, to draw what it predicts there.

An evaluation keeps counts of an image, and not its masks.
"""

from __future__ import annotations

from dataclasses import dataclass

from eagleray.core.errors import BadImageError
from eagleray.evaluation.evaluate import Evaluation
from eagleray.imaging.tiles import Tiling
from eagleray.inference.predictor import Predictor
from eagleray.io.fetch import fetch_image
from eagleray.tasks.page import Drawing

__all__ = ["MAX_MISTAKES", "DrawnMistake", "draw_mistakes"]

MAX_MISTAKES = 24
"""Number of mistakes on a page."""


@dataclass(frozen=True, slots=True)
class DrawnMistake:
    """What is drawn over an image of a page.

    Attributes:
        true: The label.
        predicted: The prediction.
    """

    true: Drawing
    predicted: Drawing


def draw_mistakes(
    predictor: Predictor, evaluation: Evaluation, tiling: Tiling | None = None
) -> dict[int, DrawnMistake]:
    """Return what is drawn over the worst mistakes, by their positions among the measured images.

    Nothing for a task whose observations say what is to be drawn, and for models that take
    attributes.

    Args:
        predictor: The model.
        evaluation: Its evaluation.
        tiling: How large images are divided into tiles; None for no tiles.
    """
    task, package = predictor.task, predictor.package
    labels = [evaluation.images.labels[row] for row in evaluation.rows.tolist()]
    if package.attributes or task.true_drawing(labels[0]) is None:
        return {}
    mistakes = task.worst_mistakes(evaluation.outputs, evaluation.targets, MAX_MISTAKES)
    drawn = {}
    for position in (one.position for one in mistakes):
        true = task.true_drawing(labels[position])
        assert true is not None
        try:
            content = fetch_image(evaluation.uri(position), package.contract)
        except BadImageError:  # it has changed since
            continue
        (outcome,) = predictor.predict([content], tiling=tiling)
        if outcome.prediction is not None:
            predicted = task.drawing(outcome.prediction, None)
            assert predicted is not None
            drawn[position] = DrawnMistake(true, predicted)
    return drawn
